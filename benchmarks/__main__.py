"""`python -m benchmarks NAME…`: run benchmarks and write down what they find."""

from __future__ import annotations

import os
import sys
import traceback
from functools import partial
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: `COMPRESS_DATA=../data python -m benchmarks sparse_lenets`")
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which benchmarks.", show_default=False)] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Run all of them.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Say which there are.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Run the long protocol; --list says how long.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and of every runtime.")] = 1,
    dry: Annotated[bool, typer.Option("--dry", help="Write nothing down.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")] = False,
) -> None:
    """Run benchmarks, each beside a named peer, and write benchmarks/results.json and docs/benchmarks.md.

    Data come from the folders that the variables COMPRESS_DATA and COMPRESS_MODELS name. What fails is told, and the
    others run. A goal that is not met stands in the results as not met.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    from benchmarks.harness.running import benchmarks, chosen
    from compress_core.workspace import ending_with_status

    with ending_with_status():
        known = benchmarks()
        if listing or not (names or every):
            _show(known, as_json=as_json)
            return
        wanted = list(known) if every else chosen(names or [], known)
        found, failed = _run(wanted, full=full, seeds=tuple(range(seeds)), threads=threads, save=not dry)
        if as_json:
            _print_json(found)
        if failed:
            typer.echo(f"failed: {', '.join(failed)}", err=True)
            raise typer.Exit(2)


def _run(
    names: list[str], *, full: bool, seeds: tuple[int, ...], threads: int, save: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """The figures of the benchmarks, and the names of those that failed."""
    from benchmarks.harness import Bench
    from benchmarks.harness.page import write_pages
    from benchmarks.harness.results import merge
    from benchmarks.harness.running import run_benchmark
    from compress_core.errors import CompressError
    from compress_core.workspace import say_error

    found: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in names:
        bench = Bench(full=full, seeds=seeds, threads=threads, say=partial(_say, name))
        try:
            new = run_benchmark(name, bench)
        except CompressError as error:
            say_error(error.inside(name))
            failed.append(name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        else:
            found += new
            if save:
                write_pages(merge(new))
    return found, failed


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", file=sys.stderr, flush=True)


def _show(known: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        _print_json(known)
        return
    for name, about in known.items():
        typer.echo(f"{name}\n  {about.replace(chr(10), chr(10) + '  ')}\n")


def _print_json(what: Any) -> None:
    import json

    typer.echo(json.dumps(what, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
