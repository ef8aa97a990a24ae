"""What networks are for: classification and regression."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_core import hookimpl
from compress_tasks.classification import Classification
from compress_tasks.regression import Regression

if TYPE_CHECKING:
    from compress_core.parts import Task

__all__ = ["Classification", "Regression"]


@hookimpl
def register_tasks() -> list[type[Task]]:
    """The tasks of this plugin."""
    return [Classification, Regression]
