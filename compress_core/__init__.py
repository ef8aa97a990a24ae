"""compress: every classic way to make a network smaller and faster, as plugins that chain into a reproducible DAG."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress_core.artifact import load, save
    from compress_core.door import Result, Together, compress
    from compress_core.hookspecs import hookimpl
    from compress_core.parts import (
        Change,
        Criterion,
        DataSource,
        Exporter,
        Task,
        Technique,
        TrainingPlan,
        TrainingTechnique,
    )

__all__ = [
    "Change",
    "Criterion",
    "DataSource",
    "Exporter",
    "Result",
    "Task",
    "Technique",
    "Together",
    "TrainingPlan",
    "TrainingTechnique",
    "compress",
    "hookimpl",
    "load",
    "save",
]

_PLACES = {
    "compress_core.artifact": ("load", "save"),
    "compress_core.door": ("Result", "Together", "compress"),
    "compress_core.hookspecs": ("hookimpl",),
    "compress_core.parts": (
        "Change",
        "Criterion",
        "DataSource",
        "Exporter",
        "Task",
        "Technique",
        "TrainingPlan",
        "TrainingTechnique",
    ),
}
_LAZY = {name: module for module, names in _PLACES.items() for name in names}
"""Where each name lies; its module is imported when the name is first used, so that `compress --help` is quick."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
