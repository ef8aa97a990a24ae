"""Integers of few bits for weights, on a grid of each row's own.

    symmetric     s = c max |w| / (2^(b-1) - 1)      w' = s k,        k = clamp(round(w / s), -m, m),  m = 2^(b-1) - 1
    asymmetric    s = c (max - min) / (2^b - 1)      w' = s (k - z),  k = clamp(round(w / s) + z, 0, 2^b - 1)

with z = round(-c min / s), and minimum and maximum widened to hold zero, so that zero is exact: a removed weight stays
removed. c is 1, or the share of the range whose grid has the least squared error sum (w - w')^2; what lies beyond is
cut off.

Sources: Jacob et al. 2018, Quantization and Training of Neural Networks, eq. 1-2; Choukroun et al. 2019, Low-bit
Quantization of Neural Networks for Efficient Inference, sec. 3 (the range of least squared error); Shen et al. 2020,
Q-BERT, sec. 3.2 (groups). Ranges: b from 2 to 8. Cost: one pass, 48 with `mse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress_codes.coding import Coding, Granularity, Rows, middle_of, valued
from compress_codes.packing import packed_bytes
from compress_codes.training import Coder, straight_through

Range = Literal["max", "mse"]
SHARES = tuple(1 - step / 64 for step in range(48))
"""The shares of a range that are tried."""


@dataclass(frozen=True)
class Grid:
    """The grid of each row."""

    bits: int
    scale: Tensor
    """(rows,), positive."""
    zero: Tensor | None
    """(rows,) whole numbers in [0, 2^bits), as floats; None for symmetric grids."""

    def codes(self, rows: Tensor) -> Tensor:
        """The codes of weights (rows, entries), as floats before they are cut to the grid."""
        middle = middle_of(self.bits) if self.zero is None else self.zero.unsqueeze(1)
        return torch.round(rows / self.scale.unsqueeze(1)) + middle

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return 1 if self.zero is None else 0

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def coding(self, rows: Tensor, layout: Rows) -> Coding:
        """The codes of weights (rows, entries)."""
        codes = self.codes(rows).clamp(self.lowest, self.highest).to(torch.uint8)
        return Coding(layout, self.bits, codes, self.scale, None if self.zero is None else self.zero.to(torch.uint8))


def grid_of(rows: Tensor, bits: int, *, symmetric: bool = True, share: Tensor | float = 1.0) -> Grid:
    """The grid over a share of the range of each row.

    Args:
        rows: (rows, entries).
        bits: the width of the integers.
        symmetric: whether the grid lies around zero.
        share: of the range, (rows,) or one for all.
    """
    if symmetric:
        width = rows.abs().amax(1) * share
        return Grid(bits, _positive(width / (middle_of(bits) - 1)), None)
    low, high = rows.amin(1).clamp(max=0.0) * share, rows.amax(1).clamp(min=0.0) * share
    top = (1 << bits) - 1
    scale = _positive((high - low) / top)
    return Grid(bits, scale, torch.round(-low / scale).clamp(0, top))


def _positive(scale: Tensor) -> Tensor:
    """1 for rows of zeros, or of numbers too small for a scale."""
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def best_share(rows: Tensor, bits: int, *, symmetric: bool = True) -> Tensor:
    """The share of each row's range whose grid has the least squared error, (rows,)."""
    best = torch.ones(len(rows), device=rows.device)
    least = torch.full_like(best, torch.inf)
    for share in SHARES:
        grid = grid_of(rows, bits, symmetric=symmetric, share=share)
        codes = grid.codes(rows).clamp(grid.lowest, grid.highest)
        error = (valued(codes, bits, grid.scale, grid.zero, None) - rows).square().sum(1)
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    return best


def uniform_bytes(count: int, bits: int, rows: int, *, symmetric: bool = True) -> int:
    """The bytes of so many integers with a scale per row, and a zero point where grids are asymmetric."""
    return packed_bytes(count, bits) + (4 if symmetric else 5) * rows


class UniformCoder(Coder):
    """Integers of few bits; where the grid cuts a weight off, it has no gradient.

    Args:
        bits: the width of the integers.
        symmetric: whether grids lie around zero.
        range: how a row's range is found.
        axis: on which the output channels of the weight lie.
        granularity: what has a scale of its own.
        group: how many entries a group has.
    """

    def __init__(
        self,
        bits: int,
        *,
        symmetric: bool = True,
        range: Range = "max",
        axis: int = 0,
        granularity: Granularity = "channel",
        group: int = 0,
    ) -> None:
        super().__init__(axis, granularity, group)
        self.bits, self.symmetric, self.range = bits, symmetric, range

    def _grid(self, rows: Tensor) -> Grid:
        share = best_share(rows, self.bits, symmetric=self.symmetric) if self.range == "mse" else 1.0
        return grid_of(rows, self.bits, symmetric=self.symmetric, share=share)

    def coding(self, weight: Tensor) -> Coding:
        """The integers of a weight."""
        layout = self.rows(weight)
        rows = layout.split(weight)
        return self._grid(rows).coding(rows, layout)

    def coded(self, weight: Tensor) -> Tensor:
        """The weight on its grid, with the straight-through gradient."""
        layout = self.rows(weight)
        rows = layout.split(weight.detach())
        grid = self._grid(rows)
        codes = grid.codes(rows)
        inside = layout.joined((codes >= grid.lowest) & (codes <= grid.highest))
        return straight_through(weight, grid.coding(rows, layout).weight(), inside)
