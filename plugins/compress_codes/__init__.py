"""Weights as codes: integers of few bits, codebooks, ternary and binary weights, powers of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_codes.codebook import Codebook
from compress_codes.low_bits import Binary, PowerOfTwo, Ternary
from compress_codes.round_weights import RoundWeights
from compress_codes.weight_only import WeightOnly
from compress_core import hookimpl
from compress_core.parts import Technique

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Binary", "Codebook", "PowerOfTwo", "RoundWeights", "Ternary", "WeightOnly"]


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [WeightOnly, RoundWeights, Codebook, Ternary, Binary, PowerOfTwo]


@hookimpl
def register_modules() -> list[type[nn.Module]]:
    """The layers that keep codes."""
    from compress_codes.coded import CodedTensor
    from compress_codes.layers import KEPT
    from compress_codes.recurrent import REAL

    return [CodedTensor, *KEPT, *REAL.values()]
