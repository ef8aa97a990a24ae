"""Pruning whole channels: masks of the groups that are coupled, and their removal with all that depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from compress_core.channels.coupling import (
    Group,
    Keeps,
    LeftAlone,
    coupled_groups,
    cut_keeps,
    keeps_of,
    misfit,
    zero_keeps,
)
from compress_core.channels.proof import check_cut, proven
from compress_core.errors import ModelError
from compress_core.selecting import matching
from compress_prune.choosing import importance, least
from compress_prune.masks import Removal
from compress_prune.naming import by_reason, check_named, skipped
from compress_prune.observing import Scorer
from compress_prune.sizing import Counts, counts_for

if TYPE_CHECKING:
    from compress_core.run import Run
    from compress_prune import Prune


class ChannelMasks(Removal):
    """Masks of channels per group, True where a channel is gone."""

    noun: ClassVar[str] = "channel"
    """What a user calls a channel."""

    def __init__(self, groups: Sequence[Group], scorer: Scorer, counts: Counts) -> None:
        super().__init__(scorer)
        self.groups, self.counts = tuple(groups), counts
        for index, group in enumerate(groups):
            self.register_buffer(f"gone_{index}", torch.zeros(group.size, dtype=torch.bool))

    @property
    def gone(self) -> list[Tensor]:
        """The masks."""
        return [self.get_buffer(f"gone_{index}") for index in range(len(self.groups))]

    @property
    def keeps(self) -> Keeps:
        """Which channels of which layers stay."""
        return keeps_of(self.groups, self.gone)

    def remove(self, model: nn.Module, done: float) -> None:
        """Remove channels until `done` of all that shall go in the end have gone."""
        gone = [mask.cpu() for mask in self.gone]
        scores = [_known(importance(model, group, self.scorer)) for group in self.groups]
        counts = self.counts(model, self.groups, scores, gone)
        for mask, score, count, before, group in zip(self.gone, scores, counts, gone, self.groups, strict=True):
            now = max(int(done * count + 1e-6), int(before.sum()))
            mask.copy_(least(score, now, before, group.blocks))

    def hold(self, model: nn.Module) -> None:
        """Set the weights of what is gone to zero, in place."""
        zero_keeps(model, self.keeps)

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Cut what is gone out of the network.

        Raises:
            ModelError: the network would compute something else without the channels.
        """
        counts = [(group, int(mask.sum())) for group, mask in zip(self.groups, self.gone, strict=True)]
        if not any(count for _, count in counts):
            run.say(f"prune: no {self.noun} went: nothing changed; raise `amount` or lower `multiple`")
            return model
        keeps = self.keeps
        if lost := misfit(model, keeps):
            raise ModelError(
                f"another technique of this step has replaced {lost!r}, whose channels were pruned while it trained",
                mend="prune in a step of its own, before or after this one",
            )
        check_cut(model, keeps, run)
        cut_keeps(model, keeps)
        went, total = sum(count for _, count in counts), sum(group.size for group, _ in counts)
        each = ", ".join(f"{group.name} {group.size} to {group.size - count}" for group, count in counts if count)
        run.say(f"prune: {went} of {total} {self.noun}s went ({each})")
        return model


def channel_masks(technique: Prune, model: nn.Module, run: Run) -> ChannelMasks:
    """Find the channels that can go.

    Raises:
        ModelError: none can.
    """
    groups, left = coupled_groups(model, run, set(skipped(technique, model)))
    if technique.only:
        named = matching(model, technique.only, field="only")
        groups = [group for group in groups if any(path in named for path in group.writers)]
    groups, wrong = proven(model, groups, run)
    return masks_of(technique, model, run, groups, [*left, *wrong])


def masks_of(
    technique: Prune,
    model: nn.Module,
    run: Run,
    groups: Sequence[Group],
    left: Sequence[LeftAlone],
    *,
    kind: type[ChannelMasks] = ChannelMasks,
) -> ChannelMasks:
    """The masks of groups that can go; those left alone are named.

    Raises:
        ModelError: there are none, or the criterion has no score for any of them.
    """
    scorer = Scorer(technique.ranking, model, run)
    known, unscored = _scored(model, groups, scorer)
    reasons = [(entry.names, entry.reason) for entry in (*left, *unscored)]
    check_named(technique, model, (path for group in known for path in (group.name, *group.writers)), reasons)
    kept = [f"the {kind.noun}s of {names} are left alone: {reason}" for names, reason in by_reason(reasons)]
    if not known:
        raise ModelError(
            "; ".join([f"the network has no {kind.noun}s that can be pruned", *kept]),
            mend="prune single weights: `granularity: weight`",
        )
    for text in kept:
        run.say(f"prune: {text}")
    return kind(known, scorer, counts_for(technique, model, known, scorer, run))


def _scored(model: nn.Module, groups: Sequence[Group], scorer: Scorer) -> tuple[list[Group], list[LeftAlone]]:
    """The groups for which the criterion has scores, and the others."""
    known = [group for group in groups if importance(model, group, scorer) is not None]
    reason = f"the criterion `{scorer.criterion.name}` has no score for them"
    return known, [LeftAlone(group.writers, reason) for group in groups if group not in known]


def _known(scores: Tensor | None) -> Tensor:
    assert scores is not None
    return scores
