"""What pruning keeps while a network trains: masks of what is gone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress_core.masks import hold_zeros, set_zero
from compress_prune.criteria import L1
from compress_prune.observing import Scorer
from compress_prune.patterns import Singles
from compress_prune.scoring import crowding
from compress_prune.threshold import Numbers, magnitudes, smallest, values

if TYPE_CHECKING:
    from compress_core.run import Run


ROUNDING = 1e-7
"""What float32 makes of a share; a schedule rises by more."""
FACTORS_FROM = 3
"""The time from which masks that stay the same are held by factors."""


class Removal(nn.Module):
    """What goes out of a network, little by little or at once, and what is gone already; it only grows."""

    done: Tensor
    """How much of what shall go in the end has gone, in [0, 1]."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.register_buffer("done", torch.zeros(()))

    def grow(self, model: nn.Module, done: float, run: Run) -> None:
        """Remove what scores least until `done` of all that shall go has gone; nothing if it has already."""
        if float(self.done) >= done - ROUNDING:
            return
        self.scorer.read(model, run)
        self.remove(model, done)
        self.done.fill_(done)
        self.hold(model)

    def observe(self, model: nn.Module, progress: float) -> None:
        """Look at the gradients of an update."""
        self.scorer.observe(model)

    @abstractmethod
    def remove(self, model: nn.Module, done: float) -> None:
        """Extend the masks by what scores least."""

    @abstractmethod
    def hold(self, model: nn.Module) -> None:
        """Set what is gone to zero, in place."""

    @abstractmethod
    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """The network without what is gone."""

    def abandon(self) -> None:
        """Take away what is hung on the network, if anything is."""


class WeightMasks(Removal):
    """Masks of weights that go one by one or in sets, True where a weight is gone."""

    went: Tensor
    """How many weights the masks have made zero; those that were zero already do not count."""

    def __init__(
        self,
        model: nn.Module,
        shares: Mapping[str, float],
        sets: Singles,
        scorer: Scorer,
        *,
        whole: bool,
        density: float = 0.0,
    ):
        """Nothing is gone yet.

        Args:
            model: the network.
            shares: the share of its sets that goes in the end, for each weight by its name.
            sets: what goes together.
            scorer: tells what goes first.
            whole: whether all weights are ranked together; the shares are then all the same.
            density: the power with which scores follow the density of rows and columns.
        """
        super().__init__(scorer)
        self.density = density
        self.shares, self.sets, self.whole = dict(shares), sets, whole
        self.places = [name.split(".") for name in shares]
        self.buffer_names = [f"gone_{index}" for index in range(len(shares))]
        self.factors: list[Tensor] = []
        """1 where a weight stays and 0 where it is gone: held after every update, masks cost half as much like this."""
        self.versions: list[int] = []
        self.times = 0
        self.register_buffer("went", torch.zeros((), dtype=torch.int64))
        for index, weight in enumerate(self.weights(model)):
            self.register_buffer(f"gone_{index}", torch.zeros_like(weight, dtype=torch.bool))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the weights, in the order of the masks."""
        return tuple(self.shares)

    @property
    def gone(self) -> list[Tensor]:
        """The masks."""
        return [self._buffers[name] for name in self.buffer_names]  # type: ignore[misc]

    def weights(self, model: nn.Module) -> list[Tensor]:
        """The weights, in the order of the masks."""
        return [_parameter(model, place) for place in self.places]

    @torch.no_grad()
    def remove(self, model: nn.Module, done: float) -> None:
        """Remove `done` of each weight's share, or of the share of all together."""
        for mask, found, weight in zip(self.gone, self.chosen(model, done), self.weights(model), strict=True):
            self.went += torch.count_nonzero(found & ~mask & (weight != 0))
            mask.logical_or_(found)

    def chosen(self, model: nn.Module, done: float) -> Iterator[Tensor]:
        """Masks of what is gone when `done` of all that shall go has gone."""
        shapes = [tuple(weight.shape) for weight in self.weights(model)]
        counts = [
            done * share * self.sets.total(shape) for share, shape in zip(self.shares.values(), shapes, strict=True)
        ]
        ranked = range(len(shapes))
        together: list[Sequence[int]] = [ranked] if self.whole else [[index] for index in ranked]
        for indices in together:
            masks = self.selected(model, indices, round(sum(counts[index] for index in indices)), done)
            for index, mask in zip(indices, masks, strict=True):
                yield self.sets.spread(mask, shapes[index])

    def selected(self, model: nn.Module, indices: Sequence[int], count: int, done: float) -> Iterator[Tensor]:
        """Masks of the sets of some weights that are gone, `count` of all of them together."""
        numbers = [self.numbers(model, index) for index in indices]
        kinds = [model.get_parameter(self.names[index]).dtype for index in indices]
        kind = reduce(torch.promote_types, kinds)
        return smallest(numbers, count, kind if self.streams else torch.promote_types(kind, torch.float32))

    @property
    def streams(self) -> bool:
        """Whether the scores are magnitudes, which are never all there at once."""
        return type(self.scorer.criterion) is L1 and type(self.sets) is Singles and not self.density

    def numbers(self, model: nn.Module, index: int) -> Numbers:
        """The scores of one weight's sets."""
        if self.streams:
            return magnitudes(model.get_parameter(self.names[index]), self.get_buffer(f"gone_{index}"))
        return values(partial(self.scores, model, index))

    def values(self, model: nn.Module, index: int) -> Tensor:
        """What of a weight is scored."""
        return model.get_parameter(self.names[index]).detach()

    def firsts(self, model: nn.Module, index: int) -> tuple[Tensor, Tensor]:
        """What of a weight goes before all scores, and what before that: zeros, and what is gone already."""
        return model.get_parameter(self.names[index]) == 0, self.get_buffer(f"gone_{index}")

    def scores(self, model: nn.Module, index: int) -> Tensor:
        """The scores of the sets of one weight; what is zero goes first, and what is gone already before it."""
        scores = self.scorer.weight_scores(self.names[index], self.values(model, index))
        assert scores is not None
        zero, gone = self.firsts(model, index)
        found = self.sets.scores(scores, self.scorer.criterion.pooled, zero, gone)
        return found.mul_(crowding(~(zero | gone), self.density)) if self.density else found

    @torch.no_grad()
    def hold(self, model: nn.Module) -> None:
        """Set what is gone to zero, in place."""
        versions = [mask._version for mask in self.gone]
        self.times = self.times + 1 if versions == self.versions else 1
        self.versions = versions
        if self.times < FACTORS_FROM:
            self.factors = []
            for weight, mask in zip(self.weights(model), self.gone, strict=True):
                set_zero(weight, mask)
            return
        weights = self.weights(model)
        if not self.factors:
            self.factors = [(~mask).to(weight.dtype) for weight, mask in zip(weights, self.gone, strict=True)]
        torch._foreach_mul_(weights, self.factors)

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Mark the zeros, so that every later training holds them."""
        for name in self.names:
            path, _, tensor = name.rpartition(".")
            hold_zeros(model.get_submodule(path), tensor)
        weights = self.weights(model)
        if self.factors:
            for weight in weights:
                weight.detach().add_(0.0)  # a factor leaves zeros with a sign
        total, left = sum(weight.numel() for weight in weights), sum(int(weight.count_nonzero()) for weight in weights)
        went = int(self.went)
        said = f"{went} of {total} weights went" if went else "no weight went: nothing changed"
        run.say(f"prune: {said}; {total - left} are zero now")
        if empty := [name for name, mask in zip(self.names, self.gone, strict=True) if bool(mask.all())]:
            run.say(f"prune: nothing is left of {', '.join(empty)}: lower `amount`, or name the layers in `skip`")
        return model


def _parameter(model: nn.Module, place: Sequence[str]) -> nn.Parameter:
    """A parameter by the parts of its name: what `get_parameter` finds, in a tenth of the time."""
    *path, name = place
    module: nn.Module = model
    for part in path:
        module = module._modules[part]  # type: ignore[assignment]
    return module._parameters[name]  # type: ignore[return-value]
