"""What every test shares, and what pytest must know of this folder."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # set before torch is imported: processes that share cores do not wait
os.environ["COLUMNS"] = "160"  # tables are as wide as in a pipe
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

collect_ignore = ["example_plugin"]  # a package of its own: test_example_plugin.py installs it and runs its tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a server, or a finished workspace, stay in one process when several run tests."""
    for item in items:
        folder = item.path.parent.name
        if folder in {"flows", "pipeline"}:
            item.add_marker(pytest.mark.xdist_group(folder))
