"""Finding benchmarks and running one."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter

from benchmarks.harness.bench import Bench
from benchmarks.harness.figures import Figure
from benchmarks.harness.machine import machine_kind, versions
from benchmarks.harness.results import Entry, entries
from compress_core.errors import RecipeError, suggest

FOLDER = Path(__file__).parent.parent


def benchmarks(folder: Path = FOLDER) -> dict[str, str]:
    """The docstring of every benchmark by its name, read without importing any."""
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    return {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}


def chosen(names: list[str], known: Mapping[str, str]) -> list[str]:
    """The names, each once, in their order.

    Raises:
        RecipeError: there is no such benchmark.
    """
    for name in names:
        if name not in known:
            raise RecipeError(f"there is no benchmark {name!r}", mend=suggest(name, known))
    return list(dict.fromkeys(names))


def run_benchmark(name: str, bench: Bench, package: str = "benchmarks") -> list[Entry]:
    """Run one benchmark and return its figures with what they rest on.

    Raises:
        CompressError: data are missing, or something of compress refuses.
    """
    import torch

    torch.set_num_threads(bench.threads)
    start = perf_counter()
    figures: list[Figure] = []
    for figure in import_module(f"{package}.{name}").run(bench):
        figures.append(figure)
        bench.say(line_of(figure))
    return entries(
        name,
        "full" if bench.full else "default",
        figures,
        seconds=perf_counter() - start,
        versions=versions(),
        machine=machine_kind(bench.threads),
    )


def line_of(figure: Figure) -> str:
    """A figure in one line."""
    beside = "" if figure.peer_value is None else f" beside {figure.peer_value:.6g} of {figure.peer}"
    verdict = "" if figure.met is None else f": goal {figure.goal:g} {'met' if figure.met else 'NOT met'}"
    return f"{figure.name}: {figure.value:.6g} {figure.unit}{beside}{verdict}"
