"""A workspace whose steps ran in this process, without DVC, and our commands called in it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from compress_core import cli, data, lock, stage
from compress_core.data import make_splits, save_splits
from compress_core.files import digest
from compress_core.recipe import Recipe, read_recipe
from compress_core.stage import run_stage
from compress_core.workspace import Workspace
from tests.workspaces import ROOT, SMALL

MAINS: dict[str, Callable[[], None]] = {
    "compress": cli.main,
    "data": data.main,
    "lock": lock.main,
    "stage": stage.main,
}
"""The commands, as `compress`, or as `python -m compress_core.NAME`."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def lay_out(folder: Path, *steps: str, recipe: str = SMALL) -> Path:
    """Make a workspace in `folder`, with its data if there are `steps`, and run these."""
    (folder / "artifacts" / "none").mkdir(parents=True)
    (folder / "params.yaml").write_text(recipe, encoding="utf-8")
    if steps:
        place, read = Workspace(folder), recipe_of(folder)
        save_splits(make_splits(read), place.artifact("data"))
        for step in steps:
            run_stage(read, step, place, printer=lambda text: None)
    return folder


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a workspace."""
    return read_recipe(folder / "params.yaml")


@contextmanager
def forgetting() -> Iterator[None]:
    """Forget afterwards what was imported from a workspace that is the working directory."""
    before, here = set(sys.modules), Path.cwd()
    with patch.object(sys, "path", list(sys.path)):
        try:
            yield
        finally:
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file and Path(file).is_relative_to(here) and not ROOT.is_relative_to(here):
                    del sys.modules[name]


def call(*command: str) -> Ended:
    """Run one of `MAINS` with arguments in the working directory; what it imports from there is forgotten."""
    out, err, status = StringIO(), StringIO(), 0
    handler = signal.getsignal(signal.SIGTERM)
    with patch.object(sys, "argv", list(command)), forgetting():
        try:
            with redirect_stdout(out), redirect_stderr(err):
                MAINS[command[0]]()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return Ended(status, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, str]:
    """The hashes of all files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
