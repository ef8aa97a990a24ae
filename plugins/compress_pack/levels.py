"""Weights on a few evenly spaced levels whose step is learned.

    q(w) = s k,  k = clip(round(w / s), -L, L)

    dl/dw     = dl/dq          for |w / s| < L, and 0 beyond
    dl/dlog s = s * sum of dl/dq * (k - w / s)     over |w / s| < L
              + s * sum of dl/dq * k               over the others

The first step is that of the least squared error, out of a few dozen. Zeros lie on the grid: weights near zero become
zero, and may come back while the network trains.

Source: Esser et al. 2020, "Learned step size quantization", eq. 1 to 3; the logarithm makes an update of the step a
share of it, whatever its size, as Jain et al. 2020, "Trained quantization thresholds", sec. 3 do.
Ranges: L from 1 (ternary) to 2000; weights finite. Cost: three passes over the weights at each update.
"""

from __future__ import annotations

import torch
from torch import Tensor

TRIED = 64
"""Steps out of which the first one is chosen."""


def on_grid(weight: Tensor, step: Tensor, levels: int) -> Tensor:
    """The nearest level of each weight, bit for bit the product of a whole number and the step."""
    return codes(weight, step, levels) * step


def codes(weight: Tensor, step: Tensor, levels: int) -> Tensor:
    """The whole numbers k, without negative zeros."""
    return (weight / step).round_().clamp_(-levels, levels).add_(0.0)


def slopes(weight: Tensor, gradient: Tensor, step: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The gradients by the weights and by the logarithm of the step, from that by the levels."""
    position = weight / step
    inside = position.abs() < levels
    error = codes(weight, step, levels) - torch.where(inside, position, 0.0)
    return gradient * inside, step * (gradient * error).sum()


def least_error_step(weight: Tensor, levels: int) -> Tensor:
    """The step of the least squared error, between the largest magnitude over `levels` and a small part of it."""
    alive = weight[weight != 0]
    if not len(alive):
        return weight.new_ones(())
    largest = alive.abs().max() / levels
    found = [largest * (TRIED - at) / TRIED for at in range(TRIED - 4)]
    errors = torch.stack([(on_grid(alive, step, levels) - alive).square().sum() for step in found])
    return found[int(errors.argmin())]
