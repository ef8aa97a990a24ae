"""Weights as codes: integers of few bits, codebooks, ternary and binary weights, powers of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_codes.weight_only import WeightOnly
from compress_core import hookimpl
from compress_core.parts import Technique

if TYPE_CHECKING:
    from torch import nn

__all__ = ["WeightOnly"]


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [WeightOnly]


@hookimpl
def register_modules() -> list[type[nn.Module]]:
    """The layers that keep codes."""
    from compress_codes.coded import CodedTensor
    from compress_codes.layers import KEPT
    from compress_codes.recurrent import REAL

    return [CodedTensor, *KEPT, *REAL.values()]
