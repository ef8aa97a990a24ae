"""Weights that are powers of two, or zero: a multiplication is a shift.

    w' = sign(w) 2^n,   n in [n_1 - m + 1, n_1],   n_1 = floor(log2(4 max |w| / 3)),   m = 2^(b-1) - 1

takes the nearest of these levels and zero. All at once, or in portions (INQ): the largest half of the weights is
fixed to powers of two, while the others train on with it; then half of the rest, and so on until all are fixed.

    portions 0.5, 0.75, 0.875, 1   from   0, 0.25, 0.5, 0.75   of the training with codes

What is fixed has no gradient; which weights these are is known by a threshold on their magnitude. At once, gradients
pass straight through.

Sources: Zhou et al. 2017, Incremental Network Quantization, eq. 1-4 and sec. 3.1 (there one more bit is set aside for
zero: m is 2^(b-2) there, while here all codes of b bits are used, one of them for zero); Miyashita et al. 2016,
Convolutional Neural Networks using Logarithmic Data Representation, sec. 3 (levels). Ranges: b from 2 to 6. Cost: one
pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress_codes.coding import Coding
from compress_codes.kmeans import middles
from compress_codes.training import Coder, straight_through

PORTIONS = (0.5, 0.75, 0.875, 1.0)
"""The shares of the weights that are fixed, in turn."""


def power_levels(weight: Tensor, bits: int) -> Tensor:
    """The levels of a weight, sorted, (2^bits - 1,)."""
    largest = float(weight.abs().max()) or 1.0
    most = int(torch.tensor(4 * largest / 3, dtype=torch.float64).log2().floor())
    count = (1 << bits - 1) - 1
    sizes = torch.tensor([2.0**power for power in range(most - count + 1, most + 1)], device=weight.device)
    return torch.cat([-sizes.flip(0), sizes.new_zeros(1), sizes])


def portion_at(progress: float) -> float:
    """The share of the weights that is fixed at this progress of the training with codes."""
    return PORTIONS[min(int(progress * len(PORTIONS) + 1e-9), len(PORTIONS) - 1)]


class PowerCoder(Coder):
    """Powers of two.

    Args:
        bits: the width of a code.
        incremental: whether weights are fixed in portions.
        axis: on which the output channels of the weight lie.
    """

    threshold: Tensor

    def __init__(self, bits: int, *, incremental: bool, axis: int = 0) -> None:
        super().__init__(axis, "tensor")
        self.bits, self.incremental = bits, incremental
        self.portion = 0.0
        self.register_buffer("threshold", torch.zeros(()))
        """Magnitude from which weights are fixed."""

    @torch.no_grad()
    def settle(self, weights: list[nn.Parameter]) -> None:
        """Fix the first portion."""
        self._fix(weights[0], PORTIONS[0])

    @torch.no_grad()
    def follow(self, progress: float, weight: nn.Parameter) -> None:
        """Fix the next portion when it is time."""
        self._fix(weight, portion_at(progress))

    def _fix(self, weight: Tensor, portion: float) -> None:
        if self.incremental and portion > self.portion:
            self.portion = portion
            size = weight.abs().flatten()
            place = min(round((1 - portion) * len(size)), len(size) - 1)
            self.threshold.copy_(size.sort().values[place] if portion < 1 else torch.zeros_like(self.threshold))

    def coding(self, weight: Tensor) -> Coding:
        """The nearest level of each entry."""
        layout = self.rows(weight)
        levels = power_levels(weight, self.bits)
        places = torch.bucketize(weight, middles(levels)).to(torch.uint8)
        return Coding(layout, self.bits, layout.split(places), levels=levels)

    def coded(self, weight: Tensor) -> Tensor:
        """The nearest levels of what is fixed, and the others as they are."""
        levels = self.coding(weight.detach()).weight()
        if not self.incremental:
            return straight_through(weight, levels)
        fixed = weight.detach().abs() >= self.threshold
        return straight_through(weight, torch.where(fixed, levels, weight.detach()), ~fixed)
