"""compress: every classic way to make a network smaller and faster, as plugins that chain into a reproducible DAG."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compress_core.hookspecs import hookimpl
from compress_core.parts import Change, DataSource, Exporter, Task, Technique, TrainingPlan, TrainingTechnique

if TYPE_CHECKING:
    from compress_core.artifact import load, save
    from compress_core.door import Result, Together, compress

__all__ = [
    "Change",
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

_LAZY = {
    "Result": "compress_core.door",
    "Together": "compress_core.door",
    "compress": "compress_core.door",
    "load": "compress_core.artifact",
    "save": "compress_core.artifact",
}
"""Names whose modules import torch, resolved when they are first used."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
