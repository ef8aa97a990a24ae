"""What pruning keeps while a network trains: masks of what is gone, which only grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compress_core.channels.coupling import Group, Keeps, keeps_of, zero_keeps
from compress_prune.choosing import counts_gone, importance, least
from compress_prune.magnitude import removed


class WeightMasks(nn.Module):
    """Masks of single weights, True where a weight is gone."""

    done: Tensor
    went: Tensor
    """How many weights the masks have made zero; those that were zero already do not count."""

    def __init__(self, model: nn.Module, names: Sequence[str], *, whole: bool) -> None:
        super().__init__()
        self.names, self.whole = tuple(names), whole
        self.register_buffer("went", torch.zeros((), dtype=torch.int64))
        self.register_buffer("done", torch.zeros(()))
        for index, weight in enumerate(self.weights(model)):
            self.register_buffer(f"gone_{index}", torch.zeros_like(weight, dtype=torch.bool))

    def weights(self, model: nn.Module) -> list[Tensor]:
        """The weights, in the order of the masks."""
        return [model.get_parameter(name) for name in self.names]

    @property
    def gone(self) -> list[Tensor]:
        """The masks."""
        return [self.get_buffer(f"gone_{index}") for index in range(len(self.names))]

    def grow(self, model: nn.Module, share: float) -> None:
        """Remove the smallest weights until their share is `share`; nothing if it is already."""
        if _reached(self.done, share):
            return
        weights = self.weights(model)
        masks = removed(weights, share, whole=self.whole, gone=self.gone)
        for mask, found, weight in zip(self.gone, masks, weights, strict=True):
            self.went += (found & ~mask & (weight != 0)).sum()
            mask.copy_(found)
        self.done.fill_(share)
        self.hold(model)

    @torch.no_grad()
    def hold(self, model: nn.Module) -> None:
        """Set what is gone to zero, in place."""
        for weight, mask in zip(self.weights(model), self.gone, strict=True):
            weight.masked_fill_(mask, 0)


class ChannelMasks(nn.Module):
    """Masks of channels per group, True where a channel is gone."""

    done: Tensor

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        amount: float,
        multiple: int,
        criterion: Literal["l1", "l2"],
        whole: bool,
    ) -> None:
        super().__init__()
        self.groups, self.amount, self.multiple, self.whole = tuple(groups), amount, multiple, whole
        self.power = 1 if criterion == "l1" else 2
        self.register_buffer("done", torch.zeros(()))
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

    def grow(self, model: nn.Module, share: float) -> None:
        """Remove channels until `share` of all that shall go in the end have gone."""
        if _reached(self.done, share):
            return
        gone = [mask.cpu() for mask in self.gone]
        scores = [importance(model, group, self.power) for group in self.groups]
        counts = counts_gone(self.groups, scores, gone, self.amount, self.multiple, whole=self.whole)
        for mask, score, count, before, group in zip(self.gone, scores, counts, gone, self.groups, strict=True):
            now = max(int(share * count + 1e-6), int(before.sum()))
            mask.copy_(least(score, now, before, group.blocks))
        self.done.fill_(share)
        self.hold(model)

    def hold(self, model: nn.Module) -> None:
        """Set the weights of what is gone to zero, in place."""
        zero_keeps(model, self.keeps)


def _reached(done: Tensor, share: float) -> bool:
    """Whether a share is done, as exactly as the format of `done` can tell."""
    return bool(done >= done.new_tensor(share))
