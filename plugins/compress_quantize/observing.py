"""How the range of an edge is found in what passes it.

    minmax          the smallest and the largest value
    moving-average  of the batches' smallest and largest values, a new batch counting for 0.05
    percentile      the mean of the batches' percentiles, p from below and p from above
    mse             argmin over (low, high) of  sum over values inside of (x - s round(x / s))^2 + sum over values
                    outside of (x - bound)^2, s = (high - low) / levels, with values spread evenly over their bin
    entropy         the threshold T on |x| whose distribution, cut off at T and rounded to the levels, has the
                    smallest Kullback-Leibler divergence from what was seen (range [-T, T], within what was seen)

`mse` and `entropy` look at a histogram of all batches. Exact zeros are counted apart: they cost nothing on a grid
that holds zero, and after a ReLU there would be little else to fit to.

Sources: Jacob et al. 2018, Quantization and Training of Neural Networks, sec. 3.1 (moving average); Choukroun et al.
2019, Low-bit Quantization for Efficient Inference, sec. 3 (mse); Migacz 2017, 8-bit Inference with TensorRT,
slides 24-38 (entropy). Cost: one pass over the values; at most 4096 counts for each edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]

BINS = 4096
"""The most bins of a histogram; the first batch gets half of them."""
FRACTIONS = 100
"""How many places of a bound `mse` tries."""
THRESHOLDS = 200
"""How many thresholds `entropy` tries."""
_ROUNDS = 3
"""How often `mse` goes over both bounds in turn."""


@dataclass(frozen=True)
class Observing:
    """How a range is found."""

    kind: Kind = "minmax"
    percentile: float = 100.0
    """Per cent of a batch's values within either end, for `percentile`."""
    levels: int = 255
    """Steps of the grid, for `mse` and `entropy`."""

    @property
    def of_histogram(self) -> bool:
        """Whether the range is found in a histogram."""
        return self.kind in {"mse", "entropy"}

    def range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range of one batch, two tensors of shape ()."""
        if not self.of_histogram:
            return value_range(x, self.percentile if self.kind == "percentile" else 100.0)
        histogram = Histogram()
        histogram.add(x)
        return self.range_in(histogram)

    def range_in(self, histogram: Histogram) -> tuple[Tensor, Tensor]:
        """The range that all batches in a histogram ask for, two tensors of shape ()."""
        if histogram.counts is None:
            return histogram.low, histogram.high
        find = least_error_range if self.kind == "mse" else least_divergence_range
        return find(histogram, self.levels)


def value_range(x: Tensor, percentile: float = 100.0) -> tuple[Tensor, Tensor]:
    """The range that holds `percentile` per cent of the values above its low end, and of those below its high end.

    Values that are not finite are no outliers: with them, the range is that of all.
    """
    flat = x.detach().float().flatten()
    low, high = torch.aminmax(flat)
    if percentile >= 100.0 or not torch.isfinite(high - low):
        return low, high
    rank = max(1, round(len(flat) * percentile / 100))
    return flat.kthvalue(len(flat) - rank + 1).values, flat.kthvalue(rank).values


class Histogram:
    """Counts over bins of one width, of which zero is an edge; twice as wide, two by two, when they would be too many.

    Merging is exact: whatever comes in, the counts are those that a histogram of the last width would have had from
    the beginning.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.first = 0
        """The first bin holds [first * width, (first + 1) * width)."""
        self.counts: Tensor | None = None
        """How many values other than zero lie in each bin, float64."""
        self.zeros = 0
        self.low, self.high = torch.zeros(()), torch.zeros(())
        """The smallest and the largest value, and zero."""

    def add(self, x: Tensor) -> None:
        """Count the values of a tensor of any shape; they have to be finite."""
        values = x.detach().double().flatten()
        values = values[values != 0]
        self.zeros += x.numel() - len(values)
        if not len(values):
            return
        low, high = torch.aminmax(values)
        self.low = torch.minimum(self.low.to(x.device), low.float())
        self.high = torch.maximum(self.high.to(x.device), high.float())
        bottom, top = min(0.0, float(low)), max(0.0, float(high))
        if self.counts is None:
            self.width = (top - bottom) * 2 / BINS
            self.counts = torch.zeros(1, dtype=torch.float64, device=x.device)
        self._widen(bottom, top)
        bins = torch.floor(values / self.width).long() - self.first
        self.counts += torch.bincount(bins, minlength=len(self.counts))

    def _widen(self, bottom: float, top: float) -> None:
        """Hold the bins from `bottom` to `top` beside those that are there."""
        while True:
            assert self.counts is not None
            first = min(self.first, _floor(bottom / self.width))
            last = max(self.first + len(self.counts) - 1, _floor(top / self.width))
            if last - first < BINS:
                break
            self._merge()
        before, after = self.first - first, last - (self.first + len(self.counts) - 1)
        self.counts, self.first = torch.nn.functional.pad(self.counts, (before, after)), first

    def _merge(self) -> None:
        assert self.counts is not None
        odd = self.first % 2
        padded = torch.nn.functional.pad(self.counts, (odd, (odd + len(self.counts)) % 2))
        self.counts = padded.reshape(-1, 2).sum(1)
        self.first, self.width = (self.first - odd) // 2, self.width * 2

    def centers(self) -> Tensor:
        """The middle of each bin, float64."""
        assert self.counts is not None
        return (torch.arange(len(self.counts), device=self.counts.device) + self.first + 0.5) * self.width


def _floor(value: float) -> int:
    return int(value // 1)


def least_error_range(histogram: Histogram, levels: int) -> tuple[Tensor, Tensor]:
    """The bounds with the least squared error, each searched on a grid while the other stays, in turn."""
    low, high = histogram.low.double(), histogram.high.double()
    fractions = torch.arange(1, FRACTIONS + 1, dtype=torch.float64, device=low.device) / FRACTIONS
    lows, highs = histogram.low * fractions, histogram.high * fractions
    for _ in range(_ROUNDS if bool(low < 0) and bool(high > 0) else 1):
        high = highs[expected_error(histogram, low.expand_as(highs), highs, levels).argmin()]
        low = lows[expected_error(histogram, lows, high.expand_as(lows), levels).argmin()]
    return low.float(), high.float()


def expected_error(histogram: Histogram, lows: Tensor, highs: Tensor, levels: int) -> Tensor:
    """The expected sum of squared errors (n,) with each of the ranges (n,), (n,) and so many steps."""
    assert histogram.counts is not None
    centers, counts = histogram.centers(), histogram.counts
    edges = (torch.arange(len(counts) + 1, device=counts.device) + histogram.first) * histogram.width
    step = ((highs - lows).double() / levels).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    zero_point = (-lows[:, None] / step).round()
    low, high = -zero_point * step, (levels - zero_point) * step
    rounding = _rounding_integral(edges / step).diff(dim=1) * (step / histogram.width) * step.square()
    beyond = (low - centers).clamp(min=0) + (centers - high).clamp(min=0)
    return (counts * torch.where(beyond > 0, beyond.square(), rounding)).sum(1)


def _rounding_integral(x: Tensor) -> Tensor:
    """The integral of (t - round(t))^2 from 0 to x."""
    whole = x.round()
    return whole / 12 + (x - whole) ** 3 / 3


def least_divergence_range(histogram: Histogram, levels: int) -> tuple[Tensor, Tensor]:
    """The range [-T, T], within what was seen, whose rounded distribution diverges least from what was seen."""
    assert histogram.counts is not None
    signed = bool(histogram.low < 0) and bool(histogram.high > 0)
    steps = (levels + 1) // 2 if signed else levels + 1
    counts = magnitudes(histogram)
    if len(counts) <= steps:
        return histogram.low, histogram.high
    sizes = sorted(set(torch.linspace(steps, len(counts), THRESHOLDS).round().long().tolist()))
    size = min(sizes, key=lambda size: divergence(counts, size, steps))
    threshold = torch.tensor(size * histogram.width, dtype=torch.float32, device=histogram.low.device)
    return torch.maximum(histogram.low, -threshold), torch.minimum(histogram.high, threshold)


def magnitudes(histogram: Histogram) -> Tensor:
    """The counts of |x|, on the bins from zero on."""
    assert histogram.counts is not None
    zero = -histogram.first
    below, above = histogram.counts[:zero].flip(0), histogram.counts[zero:]
    length = max(len(below), len(above))
    one, other = (torch.nn.functional.pad(side, (0, length - len(side))) for side in (below, above))
    return one + other


def divergence(counts: Tensor, size: int, steps: int) -> float:
    """KL(P || Q) of the first `size` bins, with P's last bin holding all beyond and Q on `steps` levels."""
    inside = counts[:size].double()
    reference = inside.clone()
    reference[-1] += counts[size:].sum()
    level = torch.arange(size, device=counts.device) * steps // size
    present = reference > 0
    total = torch.zeros(steps, dtype=torch.float64, device=counts.device).index_add_(0, level, inside)
    bins = torch.zeros_like(total).index_add_(0, level, present.double())
    spread = torch.where(present, (total / bins.clamp(min=1))[level], 0.0)
    if not bool(spread.sum() > 0):
        return float("inf")
    p, q = reference[present] / reference.sum(), spread[present] / spread.sum()
    return float(torch.where(q > 0, p * (p / q).log(), torch.inf).sum())
