"""Dynamic pruning: what is gone may come back, until the schedule ends.

Network surgery: weights that are gone go on being trained behind their mask, and the mask follows what they become.

    w = S * m;   S <- S - lr * dL/dw (for all, masked or not)
    m_i <- 0 if score(S_i) < c - h |c|,   1 if score(S_i) >= c + h |c|,   m_i otherwise

c is the score below which the wanted share lies, and rises along the ramp; h = 0.1 keeps weights from going to
and fro. At the end of the schedule h is 0, so that the number is exact, and what is gone then stays gone.

RigL: the number that is gone is the same from the beginning. Every `every` updates, in each layer of n active weights,

    k = round( alpha / 2 * (1 + cos(pi t)) * n )

active weights of smallest |w| go, and k of largest |dL/dw| among all that are not active come back, at zero; t goes
from 0 at `start` to 1 at `end`.

Source: Guo et al. 2016, Dynamic network surgery for efficient DNNs, eq. 3 to 5; Evci et al. 2020, Rigging the
lottery: making all tickets winners, sec. 3 and alg. 1. Cost: surgery two passes over the weights per update of the
network and a copy of them; RigL two selections per layer every so many updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress_core.masks import masked_tensors, set_zero
from compress_prune.masks import WeightMasks
from compress_prune.observing import Scorer, finite, gradient_of
from compress_prune.patterns import Singles
from compress_prune.ramp import ramp
from compress_prune.threshold import Numbers, kth_smallest, smallest, values

if TYPE_CHECKING:
    from compress_core.run import Run

HYSTERESIS = 0.1
"""How far from the threshold a weight has to be to change sides; Guo et al. 2016, sec. 3.2, use 0.9 and 1.1."""


def survives(score: Tensor, there: Tensor, threshold: float, hysteresis: float) -> Tensor:
    """Which weights are there after a look at their scores, given which were there before."""
    margin = hysteresis * abs(threshold)
    return torch.where(there, score >= threshold - margin, score >= threshold + margin)


def rigged(weight: Tensor, gradient: Tensor, gone: Tensor, count: int, barred: Tensor | None = None) -> Tensor:
    """The mask of what is gone after `count` active weights went and as many came back, of the same number.

    Args:
        weight: the values.
        gradient: of the loss, for all entries.
        gone: True where an entry is not active.
        count: how many go and come back.
        barred: True where an entry must not come back.
    """
    magnitude = weight.detach().abs().masked_fill(gone, torch.inf)
    dropped = _least(magnitude, min(count, int((~gone).sum())))
    idle = (gone | dropped) if barred is None else (gone | dropped) & ~barred
    wish = (-gradient.abs()).masked_fill(~idle, torch.inf)
    return (gone | dropped) & ~_least(wish, int(dropped.sum()))


def cosine_share(share: float, t: float) -> float:
    """How much of the active weights is exchanged at t in [0, 1]: `share` at first, nothing at the end."""
    return share / 2 * (1 + cos(pi * t))


class DynamicMasks(WeightMasks):
    """Masks from which weights may come back, but none that an earlier step has removed."""

    def __init__(
        self, model: nn.Module, shares: Mapping[str, float], sets: Singles, scorer: Scorer, *, whole: bool
    ) -> None:
        super().__init__(model, shares, sets, scorer, whole=whole)
        held = set(masked_tensors(model))
        self.zeros = sum(int((weight == 0).sum()) for weight in self.weights(model))
        self.barred_names = [name for name in self.names if name in held]
        for index, name in enumerate(self.barred_names):
            self.register_buffer(f"barred_{index}", model.get_parameter(name).detach() == 0)
        for name, mask in zip(self.names, self.gone, strict=True):
            if (barred := self.barred(name)) is not None:
                mask.copy_(barred)

    def barred(self, name: str) -> Tensor | None:
        """Which entries of a weight an earlier step has removed."""
        return self.get_buffer(f"barred_{self.barred_names.index(name)}") if name in self.barred_names else None

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Mark the zeros, so that every later training holds them."""
        self.went.fill_(max(0, sum(int(mask.sum()) for mask in self.gone) - self.zeros))
        return super().finish(model, run)


class Surgery(DynamicMasks):
    """Masks with the values that weights would have if they came back."""

    def __init__(
        self, model: nn.Module, shares: Mapping[str, float], sets: Singles, scorer: Scorer, *, whole: bool
    ) -> None:
        super().__init__(model, shares, sets, scorer, whole=whole)
        for index, weight in enumerate(self.weights(model)):
            self.register_buffer(f"hidden_{index}", torch.zeros_like(weight))

    @property
    def hidden(self) -> list[Tensor]:
        """The values of what is gone, and zero elsewhere."""
        return [self.get_buffer(f"hidden_{index}") for index in range(len(self.shares))]

    @torch.no_grad()
    def hold(self, model: nn.Module) -> None:
        """Take the updates of what is gone into its hidden values, and set it to zero."""
        for index, (weight, mask, hidden) in enumerate(zip(self.weights(model), self.gone, self.hidden, strict=True)):
            hidden.add_(weight * mask)
            if (barred := self.barred(self.names[index])) is not None:
                set_zero(hidden, barred)
            set_zero(weight, mask)

    @torch.no_grad()
    def remove(self, model: nn.Module, done: float) -> None:
        """Let the masks follow the scores of the dense weights."""
        self.hold(model)
        for index, found in enumerate(self.chosen(model, done)):
            name, mask, hidden = self.names[index], self.gone[index], self.hidden[index]
            weight, barred = model.get_parameter(name), self.barred(name)
            mask.copy_(found if barred is None else found | barred)
            dense = weight + hidden
            weight.copy_(dense.masked_fill(mask, 0))
            hidden.copy_(dense.masked_fill(~mask, 0))

    def values(self, model: nn.Module, index: int) -> Tensor:
        """The weight as it would be if all of it were there."""
        return super().values(model, index) + self.hidden[index]

    def firsts(self, model: nn.Module, index: int) -> tuple[Tensor, Tensor]:
        """Nothing goes first but what an earlier step has removed."""
        none = torch.zeros_like(self.gone[index])
        barred = self.barred(self.names[index])
        return none, none if barred is None else barred

    def selected(self, model: nn.Module, indices: Sequence[int], count: int, done: float) -> Iterator[Tensor]:
        """Masks of those below the threshold, with hysteresis until everything is done."""
        if done >= 1 or not count:
            yield from super().selected(model, indices, count, done)
            return
        numbers = [self.numbers(model, index) for index in indices]
        threshold = float(kth_smallest(numbers, count).threshold)
        for index in indices:
            yield ~survives(self.scores(model, index), ~self.gone[index], threshold, HYSTERESIS)

    def numbers(self, model: nn.Module, index: int) -> Numbers:
        """The scores of one weight, as if all of it were there."""
        return values(partial(self.scores, model, index))


@dataclass(frozen=True)
class Exchange:
    """When, and of which share of the active weights, RigL exchanges."""

    every: int
    """Updates of the network between two exchanges."""
    share: float
    """Exchanged at first."""
    start: float
    end: float
    """The progress at which it begins, and has ended."""


class Rigl(DynamicMasks):
    """Masks of a number that never changes, whose weights are exchanged."""

    steps: Tensor

    def __init__(
        self,
        model: nn.Module,
        shares: Mapping[str, float],
        sets: Singles,
        scorer: Scorer,
        *,
        whole: bool,
        exchange: Exchange,
    ) -> None:
        super().__init__(model, shares, sets, scorer, whole=whole)
        self.exchange = exchange
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, model: nn.Module, progress: float) -> None:
        """Exchange weights if it is time, by the gradients of this update."""
        self.steps += 1
        plan = self.exchange
        if int(self.steps) % plan.every or not plan.start <= progress < plan.end:
            return
        share = cosine_share(plan.share, ramp(progress, plan.start, plan.end))
        for name, weight, mask in zip(self.names, self.weights(model), self.gone, strict=True):
            if (gradient := gradient_of(weight)) is not None and finite([weight]):
                count = round(share * int((~mask).sum()))
                mask.copy_(rigged(weight, gradient, mask, count, self.barred(name)))
        self.hold(model)


def _least(scores: Tensor, count: int) -> Tensor:
    return next(smallest([values(lambda: scores)], count, scores.dtype)).reshape(scores.shape)
