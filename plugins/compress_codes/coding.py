"""A weight as codes: small whole numbers, and what gives each of them its value.

    w' = scale_r * (code - zero_r)        codes on an even grid: integers of few bits
    w' = scale_r * (2 code - 1)           codes of one bit: signs
    w' = scale_r * level[code]            codes of a table: codebooks, ternary and binary weights, powers of two

r is a row: the whole tensor, an output channel, or a group of inputs of one channel. Weights are laid out with the
output channels first, so a row is a run of neighbours in one channel: of a weight (out, in, kH, kW) the inputs with
their kernels, in this order.

Sources: Jacob et al. 2018, Quantization and Training of Neural Networks, eq. 1 (grids); Han et al. 2016, Deep
Compression, sec. 3 (tables); Shen et al. 2020, Q-BERT, sec. 3.2 (groups). Cost: b bits a weight, 4 bytes a scale and a
level, 1 byte a zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class Rows:
    """How a weight is cut into rows that have a scale each."""

    shape: tuple[int, ...]
    """Of the weight."""
    axis: int = 0
    """On which its output channels lie."""
    count: int = 1
    """How many rows there are."""

    @property
    def moved(self) -> tuple[int, ...]:
        """The shape with the output channels first."""
        rest = [size for place, size in enumerate(self.shape) if place != self.axis]
        return (self.shape[self.axis], *rest)

    def split(self, weight: Tensor) -> Tensor:
        """A weight as (rows, entries)."""
        return weight.movedim(self.axis, 0).reshape(self.count, -1)

    def joined(self, rows: Tensor) -> Tensor:
        """The weight again."""
        return rows.reshape(self.moved).movedim(0, self.axis)


def rows_of(shape: tuple[int, ...], axis: int, granularity: Granularity, group: int = 0) -> Rows:
    """The rows of a weight: `group` entries each, or as many as a channel has where they do not divide it."""
    channels = shape[axis]
    entries = torch.Size(shape).numel() // channels
    match granularity:
        case "tensor":
            count = 1
        case "channel":
            count = channels
        case "group":
            count = channels * (entries // group if divides(shape, axis, group) else 1)
    return Rows(shape, axis, count)


def divides(shape: tuple[int, ...], axis: int, group: int) -> bool:
    """Whether the entries of a channel are a multiple of the group."""
    return torch.Size(shape).numel() // shape[axis] % group == 0


@dataclass(frozen=True)
class Coding:
    """The codes of one weight with all that gives them their values."""

    rows: Rows
    bits: int
    codes: Tensor
    """(rows, entries) uint8, below 2^bits."""
    scale: Tensor | None = None
    """(rows,); None is 1."""
    zero: Tensor | None = None
    """(rows,) uint8: the code of zero. None is the middle of the grid, 2^(bits - 1)."""
    levels: Tensor | None = None
    """(at most 2^bits,): the table; None is an even grid."""

    def weight(self) -> Tensor:
        """What the codes stand for, in the shape of the weight."""
        return self.rows.joined(valued(self.codes, self.bits, self.scale, self.zero, self.levels))


def valued(codes: Tensor, bits: int, scale: Tensor | None, zero: Tensor | None, levels: Tensor | None) -> Tensor:
    """The real numbers (rows, entries) of codes (rows, entries)."""
    if levels is not None:
        found = levels[codes.to(torch.int64)]
    elif bits == 1:
        found = 2 * codes.to(torch.float32) - 1
    else:
        middle = middle_of(bits) if zero is None else zero.unsqueeze(1).to(torch.float32)
        found = codes.to(torch.float32) - middle
    return found if scale is None else found * scale.unsqueeze(1)


def middle_of(bits: int) -> int:
    """The code of zero on a symmetric grid."""
    return 1 << bits - 1
