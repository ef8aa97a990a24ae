"""Ternary weights: each is one of two numbers, or zero.

    TWN     D = 0.7 mean |w|           w' = a sign(w) 1[|w| > D],                       a = mean of |w| where |w| > D
    TTQ     D = 0.05 max |w|           w' = W_p where w > D, -W_n where w < -D, else 0,  W_p and W_n learned

a and D are those of a row: the whole weight, or an output channel; the mean is over weights that are not zero, so that
a removed channel changes nothing. In training the real weights get TWN's gradient
straight through. TTQ's is W_p g, g and W_n g for weights above, between and below, and that of W_p is the sum of the
gradients of the weights above, that of -W_n of those below. W_p and W_n begin as the means of these weights.

Sources: Li et al. 2016, Ternary Weight Networks, eq. 3-6; Zhu et al. 2017, Trained Ternary Quantization, eq. 6-9.
Ranges: two bits a weight. Cost: a few passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress_codes.coding import Coding
from compress_codes.training import Coder

TWN_SHARE, TTQ_SHARE = 0.7, 0.05
BITS, MIDDLE = 2, 2


def ternarized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """TWN's signs (rows, entries), in {-1, 0, 1}, and scales (rows,), positive.

    Args:
        rows: (rows, entries).
    """
    size = rows.abs()
    there = (size > 0).sum(1, keepdim=True).clamp(min=1)
    large = size > TWN_SHARE * size.sum(1, keepdim=True) / there
    scale = (size * large).sum(1) / large.sum(1).clamp(min=1)
    return rows.sign() * large, torch.where(scale > 0, scale, torch.ones_like(scale))


class TernaryCoder(Coder):
    """TWN: signs and zeros, with a scale for each row."""

    def coding(self, weight: Tensor) -> Coding:
        """The signs of a weight, around the middle of the codes."""
        layout = self.rows(weight)
        signs, scale = ternarized(layout.split(weight))
        return Coding(layout, BITS, (signs + MIDDLE).to(torch.uint8), scale)


class TrainedTernaryCoder(Coder):
    """TTQ: one learned number for each sign."""

    def __init__(self, axis: int = 0) -> None:
        super().__init__(axis, "tensor")
        self.positive = nn.Parameter(torch.ones(()))
        self.negative = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def settle(self, weights: list[nn.Parameter]) -> None:
        """Begin with the means of the weights beyond the threshold, or with the threshold where there are none."""
        (weight,) = weights
        threshold = threshold_of(weight)
        for parameter, side in ((self.positive, weight), (self.negative, -weight)):
            beyond = side[side > threshold]
            parameter.copy_(beyond.mean() if len(beyond) else threshold)

    def coded(self, weight: Tensor) -> Tensor:
        """The numbers of the signs, with TTQ's gradients."""
        found: Tensor = _Trained.apply(weight, self.positive, self.negative)  # type: ignore[no-untyped-call]
        return found

    def coding(self, weight: Tensor) -> Coding:
        """The places of the signs in the table of three levels."""
        layout = self.rows(weight)
        places = (signs_beyond(weight, threshold_of(weight)) + 1).to(torch.uint8)
        levels = torch.stack([-self.negative.detach(), torch.zeros_like(self.positive), self.positive.detach()])
        return Coding(layout, BITS, layout.split(places), levels=levels)


def threshold_of(weight: Tensor) -> Tensor:
    """TTQ's threshold, ()."""
    return TTQ_SHARE * weight.abs().max()


def signs_beyond(weight: Tensor, threshold: Tensor) -> Tensor:
    """The signs of what lies beyond a threshold, else zero."""
    return weight.sign() * (weight.abs() > threshold)


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        signs = signs_beyond(weight, threshold_of(weight))
        context.save_for_backward(signs, positive, negative)
        return torch.where(signs > 0, positive, torch.where(signs < 0, -negative, torch.zeros_like(negative)))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        signs, positive, negative = context.saved_tensors
        (gradient,) = gradients
        factor = torch.where(signs > 0, positive, torch.where(signs < 0, negative, torch.ones_like(negative)))
        above, below = (gradient * (signs > 0)).sum(), -(gradient * (signs < 0)).sum()
        return gradient * factor, above, below
