"""Networks to begin with, named in recipes by import strings such as `compress_zoo:ConvNet`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compress_core import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from compress_zoo.convnet import ConvNet
    from compress_zoo.lenet import LeNet5, LeNet300100
    from compress_zoo.mlp import MLP
    from compress_zoo.plain import SmallConvNet
    from compress_zoo.resnet import PadShortcut, ResNet20, ResNet32, ResNet44, ResNet56, ResNet110
    from compress_zoo.text import TextTransformer

__all__ = [
    "MLP",
    "ConvNet",
    "LeNet5",
    "LeNet300100",
    "PadShortcut",
    "ResNet20",
    "ResNet32",
    "ResNet44",
    "ResNet56",
    "ResNet110",
    "SmallConvNet",
    "TextTransformer",
]

_HOMES = {
    "ConvNet": "convnet",
    "LeNet300100": "lenet",
    "LeNet5": "lenet",
    "MLP": "mlp",
    "PadShortcut": "resnet",
    "ResNet110": "resnet",
    "ResNet20": "resnet",
    "ResNet32": "resnet",
    "ResNet44": "resnet",
    "ResNet56": "resnet",
    "SmallConvNet": "plain",
    "TextTransformer": "text",
}
"""The modules of the networks; they import torch and are imported when a network is first used."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"compress_zoo.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@hookimpl
def register_modules() -> list[type[nn.Module]]:
    """The shortcut without parameters, which a technique may put elsewhere."""
    from compress_zoo.resnet import PadShortcut

    return [PadShortcut]
