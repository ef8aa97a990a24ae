"""Networks to begin with, named in recipes by import strings such as `compress_zoo:ConvNet`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress_zoo.convnet import ConvNet
    from compress_zoo.mlp import MLP

__all__ = ["MLP", "ConvNet"]

_HOMES = {
    "ConvNet": "compress_zoo.convnet",
    "MLP": "compress_zoo.mlp",
}
"""The modules of the networks; they import torch and are imported when a network is first used."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
