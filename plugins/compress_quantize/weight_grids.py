"""The grids of weights: one step for each output channel or for the whole tensor, from the range or by least error.

    max    scale = max |w| / highest
    mse    scale = argmin over s in S of sum (w - s clamp(round(w / s), -highest, highest))^2,
           S = {f max |w| / highest : f = 1/100, ..., 100/100}

With `mse` the largest weights are cut off where that pays for the finer steps of all others; it is never worse
than `max`, which is in S. At 8 bits it gains next to nothing, at 4 bits a fifth of the error of normal weights.

Source: Choukroun et al. 2019, Low-bit Quantization of Neural Networks for Efficient Inference, eq. 4 (OMSE), by a
search over a grid in place of the golden section. Cost: 100 passes over the weight for `mse`, one for `max`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress_quantize.affine import highest_weight, per_channel

CANDIDATES = 100
"""How many scales `mse` tries."""


@dataclass(frozen=True)
class WeightGrid:
    """The integers that a weight may become, and how its steps are chosen."""

    bits: int = 8
    """The width of the integers, which lie in [-highest, highest]."""
    per_tensor: bool = False
    """One step for the whole tensor rather than for each output channel."""
    least_error: bool = False
    """The steps with the least squared error rather than those that hold the whole range."""

    @property
    def highest(self) -> int:
        """The largest integer."""
        return highest_weight(self.bits)

    def scale(self, weight: Tensor) -> Tensor:
        """The steps (out,) of a weight (out, ...), all the same if per tensor."""
        rows = weight.detach().reshape(1 if self.per_tensor else len(weight), -1)
        find = least_error_scale if self.least_error else whole_range_scale
        found = find(rows, self.highest)
        return found.expand(len(weight)).contiguous()


def whole_range_scale(rows: Tensor, highest: int) -> Tensor:
    """The step (n,) of each row (n, m) that its largest magnitude needs; 1 where all are zero, or too small."""
    scale = rows.abs().amax(1) / highest
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def least_error_scale(rows: Tensor, highest: int) -> Tensor:
    """The step (n,) of each row (n, m) with the least squared error."""
    widest = whole_range_scale(rows, highest)
    best = widest.clone()
    least = torch.full_like(widest, torch.inf)
    for step in range(CANDIDATES, 0, -1):
        scale = (widest * (step / CANDIDATES)).clamp(min=torch.finfo(widest.dtype).tiny)
        error = squared_error(rows, scale, highest)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def squared_error(rows: Tensor, scale: Tensor, highest: int) -> Tensor:
    """The sum (n,) over each row (n, m) of the squared differences that rounding with these steps (n,) makes."""
    steps = per_channel(scale, rows.ndim)
    rounded = torch.round(rows * (1.0 / steps)).clamp(-highest, highest) * steps
    return (rows - rounded).square().sum(1)
