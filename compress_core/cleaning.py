"""What a workspace no longer needs: results of steps that left the recipe, and remains of writing that was cut off.

Only what a step has made is touched: one that left an artifact here, or that `dvc.lock` remembers. Whatever else
somebody keeps in these folders stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from compress_core.files import MANIFEST, writing
from compress_core.planning import STAGE, last_stages
from compress_core.recipe import NAME, RESERVED, Recipe
from compress_core.workspace import Workspace

PART = ".*.part"
"""How files and folders are called while they are written."""


def leftovers(recipe: Recipe, workspace: Workspace) -> list[Path]:
    """Files and folders of no use, sorted. DVC's cache keeps what it has of them."""
    gone = _steps_that_ran(workspace) - {*recipe.steps, *RESERVED}
    places = (place(name) for name in gone for place in (workspace.artifact, workspace.metrics, workspace.runs))
    return sorted({*(path for path in places if path.exists()), *_remains(workspace)})


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


def _steps_that_ran(workspace: Workspace) -> set[str]:
    left = {manifest.parent.name for manifest in workspace.artifact("*").parent.glob(f"*/{MANIFEST}")}
    remembered = {name.removeprefix(STAGE) for name in last_stages(workspace) if name.startswith(STAGE)}
    return {name for name in left | remembered if NAME.fullmatch(name)}


def _remains(workspace: Workspace) -> Iterator[Path]:
    for place in (workspace.artifact, workspace.metrics, workspace.runs):
        yield from place("*").parent.glob(PART)
    yield from workspace.root.glob(PART)
