"""How a share is dealt out to layers by what the network loses without a part of each.

    d_l(s)  = max over s' <= s of max(0, L(without the share s' of layer l) - L),   linear between the measured shares
    s_l(c)  = the largest share with  d_l(s) + EVEN d_max s <= c
    c       such that  sum over l of n_l s_l(c) = amount * sum over l of n_l

L is the task's mean loss on validation batches: it tells small differences apart where the accuracy is still the
same. Each layer is pruned by itself at a few shares, by the criterion, and restored. Then all layers lose as much as
costs the same, c: a layer that matters little loses more than one that matters much. Shares that cost the same are
told apart by their size, so that layers that cost nothing lose equal shares.

Source: Han et al. 2015, Learning both weights and connections, sec. 4.1 and fig. 6 (the sensitivity of each layer, by
which its threshold is chosen); Li et al. 2017, Pruning filters, sec. 3.2 (the same for filters, on validation data).
Ranges: shares in [0, 1); none goes beyond the last one that was measured. Cost: one pass over at most `BATCHES`
batches of the validation split per layer and share; no training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress_core.modes import evaluating

if TYPE_CHECKING:
    from compress_core.run import Run

SHARES = (0.25, 0.5, 0.75, 0.9)
"""At which each layer is measured, beside the amount and the middle between it and all."""
BATCHES = 2
"""Batches of the validation split on which it is measured."""
CURVES = 8
"""Layers whose curves the report shows: those that matter most."""
EVEN = 1e-6
"""The slope that tells apart shares of one cost, as a share of the largest loss that was measured."""
SPAN = 1e-9
"""The smallest common loss as a share of the largest one; between them the level is logarithmic."""

Without = Callable[[float], AbstractContextManager[None]]
"""Takes a share of one layer out of the network for a while."""


@dataclass(frozen=True)
class Sensitivity:
    """By how much the network's loss is larger without a share of one layer."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Shares, from 0 on, and what is lost with each of them."""

    @cached_property
    def rising(self) -> tuple[tuple[float, float], ...]:
        """The points without dips: what is lost with a share is lost with a larger one."""
        losses = accumulate((max(0.0, loss) for _, loss in self.points), max)
        return tuple(zip((share for share, _ in self.points), losses, strict=True))

    def share_at(self, loss: float, slope: float) -> float:
        """The largest share that costs at most `loss`, with `slope` added for every share."""
        points = [(share, lost + slope * share) for share, lost in self.rising]
        for (low, one), (high, other) in pairwise(points):
            if other > loss:
                return low + (high - low) * (loss - one) / (other - one)
        return points[-1][0]


def shares_at(curves: Sequence[Sensitivity], level: float) -> list[float]:
    """The share of each layer at a level in [0, 1], none at 0 and the last measured one at 1; they rise with it."""
    if level <= 0:
        return [0.0] * len(curves)
    most = max(curve.rising[-1][1] for curve in curves) or 1.0
    loss = most * (1 + EVEN) * SPAN ** (1 - level)
    return [curve.share_at(loss, EVEN * most) for curve in curves]


def dealt_out(
    curves: Sequence[Sensitivity], sizes: Sequence[int], amount: float, least: Sequence[float] = ()
) -> list[float]:
    """The share of each layer, all at the level at which `amount` of all layers together goes.

    Args:
        curves: what each layer costs, measured beyond `amount`.
        sizes: how much each layer has.
        amount: the share that goes, in (0, 1).
        least: of each layer what goes anyway, such as what is zero already; nothing by default.
    """

    def shares(level: float) -> list[float]:
        found = shares_at(curves, level)
        return [max(pair) for pair in zip(found, least, strict=True)] if least else found

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        total = sum(size * share for size, share in zip(sizes, shares(middle), strict=True))
        low, high = (low, middle) if total >= amount * sum(sizes) else (middle, high)
    return shares(high)


def measured(model: nn.Module, layers: Mapping[str, Without], amount: float, run: Run) -> list[Sensitivity]:
    """What the network loses without a part of each layer; the curves go into the report.

    Args:
        model: the network; it is as before at the end.
        layers: for each layer what takes a share of it out.
        amount: the share that goes of all layers together.
        run: gives the data, and takes the curves.
    """
    shares = sorted({*SHARES, amount, (1 + amount) / 2})
    whole = validation_loss(model, run)
    found = []
    for name, without in layers.items():
        points = [(0.0, 0.0)]
        for share in shares:
            with without(share):
                points.append((share, validation_loss(model, run) - whole))
        found.append(Sensitivity(name, tuple(points)))
    for curve in sorted(found, key=lambda curve: (-curve.rising[-1][1], curve.name))[:CURVES]:
        run.plot(
            f"sensitivity of {curve.name}",
            curve.points,
            x="share of the layer that is gone",
            y="rise of the validation loss",
        )
    return found


@torch.no_grad()
def validation_loss(model: nn.Module, run: Run) -> float:
    """The task's mean loss on the first validation batches, in eval mode."""
    total, size = 0.0, 0
    with evaluating(model):
        for batch in islice(run.validation(), BATCHES):
            total += float(run.task.loss(run.forward(model, batch), batch)) * run.task.size(batch)
            size += run.task.size(batch)
    return total / size


@contextmanager
def restoring(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put the values of the tensors back at the end."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
