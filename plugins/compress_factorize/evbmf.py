"""The rank of a matrix under noise, from the noise alone: empirical variational Bayesian matrix factorization.

For V = A B^T + noise of variance s2, V (L, M) with L <= M and singular values g_1 >= ... >= g_L, the global solution of
the variational free energy keeps component h exactly if

    g_h^2 > M s2 x_,    x_ = (1 + tau_)(1 + a / tau_),    a = L / M

where tau_ is the zero of  f(t) + f(t / a),  f(t) = log(t + 1) / t - 1/2  (2.5129 for a square matrix). The variance s2
itself, unless it is known, minimises over an interval

    sum over h of  psi(g_h^2 / (M s2)),    psi(x) = x - log x + [x > x_] (log(t + 1) + a log(t / a + 1) - t)
                                           with t = (x - (1 + a) + sqrt((x - (1 + a))^2 - 4 a)) / 2

Source: Nakajima, Sugiyama, Babacan, Tomioka 2013, Global analytic solution of fully-observed variational Bayesian
matrix factorization, JMLR 14, theorems 2, 3 and 6 (its corollary for the variance). Kim et al. 2016, Compression of
deep convolutional neural networks for fast and low power mobile applications, sec. 3.1, choose the ranks of a Tucker-2
chain by it. Range: 0 for a matrix that cannot be told from noise, at most L. Cost: one SVD; the search is O(L) each.
"""

from __future__ import annotations

from math import ceil, log

import torch
from torch import Tensor

GRID = 400
"""Variances that are tried before the best is refined: the objective has a minimum for each rank."""
HALVINGS = 60
GOLDEN = 0.6180339887498949


def evbmf_rank(matrix: Tensor, variance: float | None = None) -> int:
    """How many components of a matrix stand out of the noise.

    Args:
        matrix: (rows, columns).
        variance: of the noise in each entry; estimated unless given.
    """
    values: Tensor = torch.linalg.svdvals(matrix.double())
    rows, columns = min(matrix.shape), max(matrix.shape)
    squares = values.square() / columns
    if not float(squares.sum()) > 0:
        return 0
    limit = threshold(rows / columns)
    if variance is None:
        variance = noise_variance(squares, rows / columns, limit)
    return int((squares > variance * limit).sum())


def threshold(ratio: float) -> float:
    """x_ for a matrix with rows / columns = ratio, in (0, 1]."""
    low, high = 0.0, 10.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _phi(middle) + _phi(middle / ratio) > 0 else (low, middle)
    return (1 + low) * (1 + ratio / low)


def _phi(t: float) -> float:
    return log(t + 1) / t - 0.5


def noise_variance(squares: Tensor, ratio: float, limit: float) -> float:
    """The variance of the noise.

    Args:
        squares: g_h^2 / M by falling size, (L,).
        ratio: L / M.
        limit: x_.
    """
    count = len(squares)
    most = max(0, min(ceil(count / (1 + ratio)) - 1, count - 1))
    high = float(squares.mean())
    low = max(float(squares[most]) / limit, float(squares[most:].sum()) / (count - most))
    low = max(low, high * torch.finfo(torch.float64).eps)
    if low >= high:
        return high
    tried = torch.logspace(log(low), log(high), GRID, base=torch.e, dtype=torch.float64)
    best = int(objective(squares, tried, ratio, limit).argmin())
    return _refined(squares, ratio, limit, float(tried[max(best - 1, 0)]), float(tried[min(best + 1, GRID - 1)]))


def objective(squares: Tensor, variances: Tensor, ratio: float, limit: float) -> Tensor:
    """The free energy, up to constants, at each of some variances, (n,)."""
    x = squares.clamp(min=torch.finfo(torch.float64).tiny)[None, :] / variances[:, None]
    above = x - (1 + ratio)
    t = (above + (above.square() - 4 * ratio).clamp(min=0).sqrt()) / 2
    kept = (t + 1).log() + ratio * (t / ratio + 1).log() - t
    return (x - x.log() + torch.where(x > limit, kept, 0)).sum(1)


def _refined(squares: Tensor, ratio: float, limit: float, low: float, high: float) -> float:
    """A minimum between two variances, by golden sections."""
    for _ in range(HALVINGS):
        first, second = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        one, other = objective(squares, torch.tensor([first, second], dtype=torch.float64), ratio, limit).tolist()
        low, high = (low, second) if one < other else (first, high)
    return (low + high) / 2
