"""A finished workspace, made once, and copies of it to change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workspaces import make_workspace, repro


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe after `dvc repro`. Not to be changed."""
    folder = make_workspace(tmp_path_factory.mktemp("finished") / "workspace")
    repro(folder)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A finished workspace of the test's own."""
    yield Path(shutil.copytree(finished, tmp_path / "workspace", symlinks=True))
