"""What a workspace no longer needs: results of steps that left the recipe, and remains of writing that was cut off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from compress_core.recipe import RESERVED, Recipe
from compress_core.workspace import Workspace

PART = ".*.part"
"""How files and folders are called while they are written."""


def leftovers(recipe: Recipe, workspace: Workspace) -> list[Path]:
    """Files and folders of no use, sorted. DVC's cache keeps what it has of them."""
    kept = {*recipe.steps, *RESERVED}
    return sorted(path for path in _results(workspace) if path.stem not in kept or path.match(PART))


def remove(paths: list[Path]) -> None:
    """Delete files and folders."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _results(workspace: Workspace) -> Iterator[Path]:
    for example in (workspace.artifact("_"), workspace.runs("_"), workspace.metrics("_")):
        if example.parent.is_dir():
            yield from (path for path in example.parent.iterdir() if path.name != ".gitignore")
    yield from workspace.root.glob(PART)
