"""What a workspace no longer needs: results of steps that left the recipe, and remains of writing that was cut off.

Only what has the look of a result is touched: whatever else somebody keeps in these folders stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from compress_core.files import MANIFEST, writing
from compress_core.recipe import NAME, RESERVED, Recipe
from compress_core.workspace import Workspace

PART = ".*.part"
"""How files and folders are called while they are written."""


def leftovers(recipe: Recipe, workspace: Workspace) -> list[Path]:
    """Files and folders of no use, sorted. DVC's cache keeps what it has of them."""
    kept = {*recipe.steps, *RESERVED}
    results = (path for path in _results(workspace) if NAME.fullmatch(path.stem) and path.stem not in kept)
    return sorted({*results, *_remains(workspace)})


def remove(paths: list[Path]) -> None:
    """Delete files and folders.

    Raises:
        ArtifactError: one of them cannot be deleted.
    """
    for path in paths:
        with writing(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _results(workspace: Workspace) -> Iterator[Path]:
    artifacts, metrics, runs = _folders(workspace)
    yield from (manifest.parent for manifest in artifacts.glob(f"*/{MANIFEST}"))
    yield from metrics.glob("*.json")
    yield from (path for path in runs.glob("*") if path.is_dir())


def _remains(workspace: Workspace) -> Iterator[Path]:
    for folder in (workspace.root, *_folders(workspace)):
        yield from folder.glob(PART)


def _folders(workspace: Workspace) -> tuple[Path, Path, Path]:
    return workspace.artifact("*").parent, workspace.metrics("*").parent, workspace.runs("*").parent
