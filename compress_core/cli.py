"""`compress`: the commands of a workspace. What they do lies in modules of their own, imported when it is used."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from compress_core.errors import EXIT_STATUS
from compress_core.workspace import Workspace, ending_with_status, say_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Make a neural network small and fast: see what can be used, check a recipe, try it, read its report.",
    epilog="`dvc repro` runs the recipe of params.yaml; `prefect deployment run 'compress-model/local'` does the same.",
)

WIDTH = 160
"""Of a table that is written into a file or a pipe."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]
Source = Annotated[Path, typer.Argument(help="A safetensors file, or a folder with one, or with shards and an index.")]
Target = Annotated[Path, typer.Argument(help="A new file NAME.safetensors, or a new folder.")]
ShardSize = Annotated[
    float | None, typer.Option(min=0.001, help="Of a folder's shards, in GB of 10^9 bytes; 5 unless told.")
]


class Others(StrEnum):
    """What becomes of real numbers that do not become integers."""

    keep = "keep"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Real(StrEnum):
    """What restored weights are."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.command(epilog="Example: `compress plugins prune`")
def plugins(
    name: Annotated[str | None, typer.Argument(help="A plugin or a part: shows its parameters.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins and what they provide, or show the parameters of one."""
    from compress_core.catalog import catalog
    from compress_core.listing import describe, listing, parts_table, plugins_table

    with ending_with_status():
        if name is None:
            _show(listing(catalog()) if as_json else plugins_table(catalog()))
        else:
            found = describe(catalog(), name)
            _show(found if as_json else parts_table(found))


@app.command(epilog="Example: `compress check && dvc repro`")
def check(as_json: AsJson = False) -> None:
    """Check params.yaml and show the plan: which steps would run, in which order, and why."""
    from compress_core.listing import plan_table
    from compress_core.planning import plan
    from compress_core.recipe import read_recipe

    with ending_with_status():
        workspace = Workspace.here()
        planned = plan(read_recipe(workspace.params), workspace)
        _show([entry.to_dict() for entry in planned] if as_json else plan_table(planned))


@app.command("try", epilog="Example: `compress try`")
def try_(as_json: AsJson = False) -> None:
    """Send one batch through every step: finds in seconds what would fail in an hour."""
    from compress_core.listing import trial_line
    from compress_core.recipe import read_recipe
    from compress_core.trial import try_recipe

    with ending_with_status():
        workspace = Workspace.here()
        trials = []
        for trial in try_recipe(read_recipe(workspace.params), workspace):
            trials.append(trial)
            if not as_json:
                typer.echo(trial_line(trial))
            if trial.error is not None:
                say_error(trial.error)
        if as_json:
            _show([trial.to_dict() for trial in trials])
        if any(trial.error for trial in trials):
            raise typer.Exit(EXIT_STATUS)


@app.command(epilog="Example: `compress report --json | jq '.steps.onnx.metrics.bytes'`")
def report(as_json: AsJson = False) -> None:
    """Show every step beside the reference: quality, bytes, latency; report/report.html shows more."""
    from compress_core.report import load_report
    from compress_core.report.rendering import table

    with ending_with_status():
        found = load_report(Workspace.here())
        _show(found.to_dict() if as_json else table(found))


@app.command(epilog="Example: `compress schema > params.schema.json`")
def schema() -> None:
    """Print the JSON schema of params.yaml, for editors."""
    from compress_core.catalog import catalog
    from compress_core.schema import recipe_schema

    with ending_with_status():
        _show(recipe_schema(catalog()))


@app.command(epilog="Example: `compress clean --dry-run`")
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what steps left that are no longer in params.yaml, and remains of writing that was cut off.

    Not while a step runs: what it is just writing would go.
    """
    from compress_core.cleaning import leftovers, remove
    from compress_core.recipe import read_recipe

    with ending_with_status():
        workspace = Workspace.here()
        found = leftovers(read_recipe(workspace.params), workspace)
        if not dry_run:
            remove(found)
        if as_json:
            _show([str(path) for path in found])
            return
        for path in found:
            typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
        if not found:
            typer.echo("nothing to remove")


@app.command(epilog="Example: `compress unpack artifacts/packed/model.cpk lenet`")
def unpack(
    file: Annotated[Path, typer.Argument(help="A file that holds a whole artifact, such as model.cpk.")],
    folder: Annotated[Path, typer.Argument(help="A new folder, or an artifact that is replaced.")],
) -> None:
    """Restore the artifact that a packed file holds: manifest.json and model.safetensors, bit for bit."""
    from compress_core.unpacking import unpack_file

    with ending_with_status():
        unpack_file(file, folder)
        typer.echo(f"unpacked {file} into {folder}")


@app.command(epilog="Example: `compress shrink llama llama-int8 --exclude '*embed*' --others bfloat16`")
def shrink(
    source: Source,
    target: Target,
    *,
    group: Annotated[int | None, typer.Option(min=1, help="Numbers of a row that share a scale.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only tensors whose names fit, such as `*.weight`.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not those whose names fit.")] = None,
    least: Annotated[int, typer.Option(min=1, help="Smaller tensors stay.")] = 4096,
    others: Annotated[Others, typer.Option(help="What the other real numbers become.")] = Others.keep,
    shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite a checkpoint of any size to 8-bit integers with scales, tensor by tensor, without a recipe.

    Tensors with two or more axes become NAME, in int8, and NAME_scale, in float32; one scale per row.
    """
    from compress_core.checkpoints import shrink as rewrite

    with ending_with_status(), _progress() as watch:
        found = rewrite(
            source,
            target,
            group=group,
            include=include or (),
            exclude=exclude or (),
            least=least,
            others=others.value,
            shard_size=_bytes(shard_size),
            watch=watch,
        )
    typer.echo(found.summary()) if not as_json else _show(found.to_dict())


@app.command(epilog="Example: `compress restore llama-int8 llama-fp16 --dtype float16`")
def restore(
    source: Source,
    target: Target,
    *,
    dtype: Annotated[Real, typer.Option(help="Of the restored weights.")] = Real.float32,
    shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite what `compress shrink` has written to real numbers again, which every loader knows."""
    from compress_core.checkpoints import restore as rewrite

    with ending_with_status(), _progress() as watch:
        found = rewrite(source, target, dtype=dtype.value, shard_size=_bytes(shard_size), watch=watch)
    typer.echo(found.summary()) if not as_json else _show(found.to_dict())


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1_000_000_000)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, and nothing elsewhere; it is told how many bytes have just been done, and of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


def _show(what: Any) -> None:
    if isinstance(what, (dict, list)):
        typer.echo(json.dumps(what, indent=2, ensure_ascii=False, default=_plain))
        return
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if known else WIDTH).print(what)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value)


def main() -> None:
    """Run the command line."""
    app(prog_name="compress")


if __name__ == "__main__":
    main()
