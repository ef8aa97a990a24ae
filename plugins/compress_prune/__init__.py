"""Pruning: single weights or whole channels go, at once or little by little while the network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.errors import ModelError
from compress_core.parts import Change, Technique, TrainingPlan, TrainingTechnique
from compress_core.selecting import matching

if TYPE_CHECKING:
    from torch import nn

    from compress_core.channels.coupling import LeftAlone
    from compress_core.run import Run
    from compress_prune.masks import ChannelMasks, WeightMasks


class Prune(TrainingTechnique):
    """Remove the weights or the channels of least magnitude, and let the network recover while it trains.

    With `granularity: weight` single weights become zero and stay zero in every later training. The network
    gets no faster by it, but its file packs better. With `granularity: channel` whole channels go, together
    with all that writes and reads them: the network gets smaller and faster. A network without the channels
    computes what it computes with zeros in their place; channels for which that is not so (those that a
    LayerNorm, attention, an LSTM or a padding shortcut couples) are left alone and named.

    With epochs in its step, `gradual` raises the share from 0 at `start` to `amount` at `end` along
    s(t) = amount * (1 - (1 - t)^3), and the best epoch is chosen after `end`. Without epochs, and with
    `one-shot`, everything goes at once.
    """

    name = "prune"
    example: ClassVar[dict[str, float]] = {"amount": 0.5}

    amount: float = Field(gt=0, lt=1)
    """The share that goes: of the weights, or of the channels. Weights that are zero already count."""
    granularity: Literal["weight", "channel"] = "weight"
    """Whether single weights go, or whole channels (units of linear layers, filters of convolutions)."""
    scope: Literal["layer", "global"] = "layer"
    """Whether `amount` holds for each layer by itself or over the whole network."""
    schedule: Literal["gradual", "one-shot"] = "gradual"
    """Whether the share rises while the network trains, or all goes before the first update."""
    start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training at which a gradual schedule starts."""
    end: float = Field(default=0.5, gt=0, le=1)
    """Share of the training at which a gradual schedule has reached `amount`."""
    criterion: Literal["l1", "l2"] = "l2"
    """The norm of a channel's weights, written and read, by which channels are ranked."""
    multiple: int = Field(default=1, ge=1)
    """The number of channels that stay is the nearest multiple of this, as in 16 for integer kernels."""
    skip: tuple[str, ...] = ()
    """Paths of modules whose weights, or output channels, stay; `*` stands for anything, as in `encoder.*`."""

    @model_validator(mode="after")
    def _fits(self) -> Prune:
        if self.granularity == "weight" and self.multiple != 1:
            raise ValueError("`multiple` counts channels: add `granularity: channel`, or leave it out")
        if self.granularity == "weight" and self.criterion != "l2":
            raise ValueError("`criterion` ranks channels: add `granularity: channel`, or leave it out")
        if self.schedule == "one-shot" and (self.start, self.end) != (0.0, 0.5):
            raise ValueError("a one-shot schedule has no `start` and `end`: leave them out, or use `schedule: gradual`")
        if self.start >= self.end:
            raise ValueError(f"`start` ({self.start}) has to lie before `end` ({self.end})")
        return self

    @property
    def changes(self) -> frozenset[Change]:
        """The weights, and with channels the architecture."""
        weights = frozenset({Change.WEIGHTS})
        return weights if self.granularity == "weight" else weights | {Change.ARCHITECTURE}

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Choose no epoch before the schedule has ended."""
        if self.schedule == "one-shot":
            return plan
        return replace(plan, select_from=max(plan.select_from, self.end))

    def begin(self, model: nn.Module, run: Run) -> nn.Module:
        """Find what can go, and with a one-shot schedule remove it.

        Raises:
            ModelError: nothing can go, or a pattern in `skip` matches no module.
        """
        skipped = matching(model, self.skip)
        masks = self._weights(model, skipped) if self.granularity == "weight" else self._channels(model, skipped, run)
        if self.schedule == "one-shot":
            masks.grow(model, self._final)
        return masks

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Let the masks grow along the schedule, and set what is gone to zero."""
        masks = _masks(state)
        masks.grow(model, self._share(progress))
        masks.hold(model)

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Hold the zeros of single weights; remove channels for good.

        Raises:
            ModelError: the network would compute something else without the channels.
        """
        from compress_prune.masks import WeightMasks

        masks = _masks(state)
        masks.grow(model, self._final)
        if isinstance(masks, WeightMasks):
            return self._finish_weights(model, masks, run)
        return self._finish_channels(model, masks, run)

    @property
    def _final(self) -> float:
        """What the masks grow to: the share of the weights, or all channels that shall go."""
        return self.amount if self.granularity == "weight" else 1.0

    def _share(self, progress: float) -> float:
        """What the masks have grown to at `progress`; the ramp rises in steps."""
        from compress_prune.magnitude import UPDATES, cubic, ramp

        if self.schedule == "one-shot" or progress >= self.end:
            return self._final
        done = int(ramp(progress, self.start, self.end) * UPDATES) / UPDATES
        return cubic(done, start=0.0, end=1.0, final=self._final)

    def _weights(self, model: nn.Module, skipped: Mapping[str, nn.Module]) -> WeightMasks:
        from compress_core.weights import weights
        from compress_prune.masks import WeightMasks

        names = [place.name for place in weights(model, skipped.values())]
        if not names:
            raise ModelError("the network has no weights to prune", mend="shorten `skip`")
        return WeightMasks(model, names, whole=self.scope == "global")

    def _channels(self, model: nn.Module, skipped: Mapping[str, nn.Module], run: Run) -> ChannelMasks:
        from compress_core.channels.coupling import coupled_groups
        from compress_core.channels.proof import proven
        from compress_prune.masks import ChannelMasks

        groups, left = coupled_groups(model, run, set(skipped))
        groups, wrong = proven(model, groups, run)
        kept = [f"the channels of {names} are left alone: {reason}" for names, reason in _by_reason([*left, *wrong])]
        if not groups:
            raise ModelError(
                "; ".join(["the network has no channels that can be pruned", *kept]),
                mend="prune single weights: `granularity: weight`",
            )
        for text in kept:
            run.say(f"prune: {text}")
        return ChannelMasks(
            groups,
            amount=self.amount,
            multiple=self.multiple,
            criterion=self.criterion,
            whole=self.scope == "global",
        )

    def _finish_weights(self, model: nn.Module, masks: WeightMasks, run: Run) -> nn.Module:
        from compress_core.masks import hold_zeros

        for name in masks.names:
            path, _, tensor = name.rpartition(".")
            hold_zeros(model.get_submodule(path), tensor)
        weights = masks.weights(model)
        total, zeros = sum(weight.numel() for weight in weights), sum(int((weight == 0).sum()) for weight in weights)
        went = int(masks.went)
        said = f"{went} of {total} weights went" if went else "no weight went: nothing changed"
        run.say(f"prune: {said}; {zeros} are zero now")
        return model

    def _finish_channels(self, model: nn.Module, masks: ChannelMasks, run: Run) -> nn.Module:
        from compress_core.channels.coupling import cut_keeps, misfit
        from compress_core.channels.proof import check_cut

        counts = [(group, int(mask.sum())) for group, mask in zip(masks.groups, masks.gone, strict=True)]
        if not any(count for _, count in counts):
            run.say("prune: no channel went: nothing changed; raise `amount` or lower `multiple`")
            return model
        keeps = masks.keeps
        if lost := misfit(model, keeps):
            raise ModelError(
                f"another technique of this step has replaced {lost!r}, whose channels were pruned while it trained",
                mend="prune in a step of its own, before or after this one",
            )
        check_cut(model, keeps, run)
        cut_keeps(model, keeps)
        went, total = sum(count for _, count in counts), sum(group.size for group, _ in counts)
        each = ", ".join(f"{group.name} {group.size} to {group.size - count}" for group, count in counts if count)
        run.say(f"prune: {went} of {total} channels went ({each})")
        return model


def _masks(state: nn.Module | None) -> WeightMasks | ChannelMasks:
    from compress_prune.masks import ChannelMasks, WeightMasks

    assert isinstance(state, WeightMasks | ChannelMasks)
    return state


def _by_reason(left: Sequence[LeftAlone]) -> list[tuple[str, str]]:
    """The names of what is left alone for each reason, at most five of them."""
    found: dict[str, list[str]] = {}
    for entry in left:
        found.setdefault(entry.reason, []).extend(entry.names)
    return [
        (", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""), reason)
        for reason, names in found.items()
    ]


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Prune]
