"""What networks are for: classification and regression."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_core import hookimpl
from compress_tasks.classification import Classification

if TYPE_CHECKING:
    from compress_core.parts import Task

__all__ = ["Classification"]


@hookimpl
def register_tasks() -> list[type[Task]]:
    """The tasks of this plugin."""
    return [Classification]
