"""Saturation: weights are held within [-c, c], so that a grid of few integers spends none of them on outliers.

    w' = clamp(w, -c, c)

c is a percentile of |w|, or it is best for symmetric integers of M bits, which lie at multiples of c / L with
L = 2^(M-1) - 1: a large c rounds coarsely, a small c cuts much off.

    Q_c(w) = (c / L) * round(clamp(w, -c, c) * L / c)

    measured      c = argmin sum (w - Q_c(w))^2
    Laplace(b)    E(w - Q_c(w))^2  =  2 b^2 e^(-c/b) + c^2 / (12 L^2)        zero slope:  2 b e^(-c/b) = c / (6 L^2)
    Gauss(s)      E(w - Q_c(w))^2  =  2 [(c^2 + s^2) (1 - F(c/s)) - c s f(c/s)] + c^2 / (12 L^2)

The two closed forms take rounding for noise of variance step^2 / 12; b is the mean of |w|, s the root of the mean of
w^2, F and f the normal distribution and its density. Zeros are removed weights, which every grid holds exactly: both
means are over the others. The paper's grid has the step 2c / 2^M, ours 2c / (2^M - 2).

Sources: Banner et al. 2019, Post training 4-bit quantization of convolutional networks, sec. 3.1, eq. 5 and appendix A
(ACIQ, the closed forms); Choukroun et al. 2019, Low-bit quantization of neural networks for efficient inference,
sec. 3 (OMSE: the error itself is minimised). Ranges: M from 2 to 8. Cost: `COARSE` + 2 `FINE` passes over the weight,
or one for the closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf, exp, pi, sqrt

import torch
from torch import Tensor

COARSE, FINE = 40, 10
"""How many bounds are tried, evenly up to the largest magnitude and then between the neighbours of the best one."""
PIECE = 2**16
"""Weights in a piece."""


def saturate(weight: Tensor, bound: Tensor) -> Tensor:
    """The rows of a weight (rows, entries) held within -bound and bound, (rows,)."""
    return torch.maximum(torch.minimum(weight, bound[:, None]), -bound[:, None])


def rounded(weight: Tensor, bound: Tensor, bits: int) -> Tensor:
    """Q_c of each row of a weight (rows, entries) for its bound (rows,); a row of bound 0 is 0."""
    step = bound[:, None] / levels(bits)
    safe = torch.where(step > 0, step, torch.ones_like(step))
    return saturate(weight, bound).div(safe).round().mul(step)


def levels(bits: int) -> int:
    """The largest of the symmetric integers of so many bits."""
    return int(2 ** (bits - 1)) - 1


def percentile_bound(weight: Tensor, percentile: float) -> Tensor:
    """The magnitude that `percentile` per cent of the entries of each row (rows, entries) do not exceed, (rows,)."""
    rank = max(1, round(weight.shape[1] * percentile / 100))
    return weight.abs().kthvalue(rank, dim=1).values


def measured_bound(weight: Tensor, bits: int) -> Tensor:
    """The bound of least squared error of each row of a weight (rows, entries), (rows,).

    The error need not have a single minimum, so bounds are tried all over the range first. Rows are worked on in
    pieces that fit the processor's cache.
    """
    rows = max(1, PIECE // max(1, weight.shape[1]))
    return torch.cat([_measured(piece, bits) for piece in torch.split(weight, rows)])


def _measured(weight: Tensor, bits: int) -> Tensor:
    largest = weight.abs().amax(1)
    best = _best(weight, bits, [largest * (index / COARSE) for index in range(1, COARSE + 1)])
    width = largest / COARSE
    nearby = [best + width * (index / FINE) for index in range(-FINE + 1, FINE)]
    return _best(weight, bits, [torch.minimum(bound, largest) for bound in [best, *nearby]])


def laplace_bound(scale: float, step: float) -> float:
    """The best bound for a Laplace distribution.

    Args:
        scale: b, the mean magnitude.
        step: the distance of the grid's points for a bound of 1: 2 / 2^M in the paper, 1 / levels(M) here.
    """
    return scale * _root(lambda c: 2 * exp(-c) - c * step**2 / 6)


def gauss_bound(scale: float, step: float) -> float:
    """The best bound for a normal distribution; the arguments are those of `laplace_bound`, with b the deviation.

    The slope of the error is c step^2 / 6 + 4 [c (1 - F(c)) - f(c)] for a deviation of 1.
    """

    def falling(c: float) -> float:
        tail = (1 - erf(c / sqrt(2))) / 2
        return 4 * (exp(-c * c / 2) / sqrt(2 * pi) - c * tail) - c * step**2 / 6

    return scale * _root(falling)


def mean_magnitude(weight: Tensor) -> Tensor:
    """The mean of |w| over the entries of each row (rows, entries) that are not zero, (rows,); 0 if there are none."""
    return weight.abs().sum(1) / weight.count_nonzero(1).clamp(min=1)


def root_mean_square(weight: Tensor) -> Tensor:
    """The root of the mean of w^2 over the entries of each row (rows, entries) that are not zero, (rows,)."""
    return (weight.square().sum(1) / weight.count_nonzero(1).clamp(min=1)).sqrt()


def _best(weight: Tensor, bits: int, bounds: list[Tensor]) -> Tensor:
    """For each row the one of the bounds (rows,) of least squared error; the first if several are."""
    best = bounds[0]
    least = torch.full_like(best, torch.inf)
    for bound in bounds:
        error = _squared_error(weight, bound, bits)
        best = torch.where(error < least, bound, best)
        least = torch.minimum(error, least)
    return best


def _squared_error(weight: Tensor, bound: Tensor, bits: int) -> Tensor:
    """The sum of (w - Q_c(w))^2 of each row, (rows,): in steps of the grid, with two tensors of the weight's size."""
    step = bound / levels(bits)
    step = torch.where(step > 0, step, torch.ones_like(step))
    scaled = weight / step[:, None]
    error = scaled.round().clamp_(-levels(bits), levels(bits)).sub_(scaled)
    squares: Tensor = torch.linalg.vector_norm(error, dim=1).square()
    return squares.mul(step.square())


def _root(falling: Callable[[float], float]) -> float:
    """The zero of a falling function, positive at 0, by bisection up to 100."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low
