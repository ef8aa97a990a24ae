"""How many channels of each group go, and which.

    I_k = pooled( sum over all layers of the group of the scores of the weights of channel k )

The importance of a channel is that of all weights that go with it: the rows that write it and the columns that
read it, in every layer of its group; with the criterion l2 their norm, with taylor the magnitude of the sum of g w.
Criteria of channels (the scale of a norm, the activations) are added over the layers of the group instead.
Per group, the channels of least importance go. Over the whole network, importances are divided by their mean in
the group, since layers differ in scale, and the ranking decides how many channels each group loses; the most
important one of each always stays.

Source: Li et al. 2017, Pruning filters for efficient convnets, sec. 3.1 (norms of filters, l1);
Fang et al. 2023, DepGraph, eq. 4 and sec. 3.4 (the importance of a group, l2).
Cost: one pass over the weights of the groups; no data but what the criterion measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import torch
from torch import Tensor, nn

from compress_core.channels.coupling import Group
from compress_core.channels.cutting import axes, blocks_of
from compress_prune.observing import Scorer, is_layer


def importance(model: nn.Module, group: Group, scorer: Scorer) -> Tensor | None:
    """The importance of each channel of a group, (size,); None if the criterion has no score for any of its layers."""
    total = torch.zeros(group.size, dtype=torch.float64)
    found = False
    for member in group.members:
        path, side, _ = member.place
        scores = _scores(model, path, side, member.size, scorer) if side in {"out", "in"} else None
        if scores is not None:
            total.index_add_(0, member.root, scores.cpu().double()[member.index])
            found = True
    return scorer.criterion.pooled(total) if found else None


def channel_sums(layer: nn.Module, side: str, values: Tensor) -> Tensor:
    """Sums over each channel that a convolution or a linear layer writes or reads, of values in its weight's shape."""
    axis = axes(layer, "out" if side == "out" else "in")["weight"]
    if side == "out" or blocks_of(layer) == 1:
        return values.movedim(axis, 0).flatten(1).sum(1)
    blocks = values.reshape(blocks_of(layer), -1, *values.shape[1:])
    return blocks.movedim(axis + 1, 1).flatten(2).sum(2).reshape(-1)


def nearest_kept(size: int, kept: float, step: int, at_most: int) -> int:
    """How many channels stay: the multiple of `step` nearest to `kept`, at least one step if there is one.

    Args:
        size: channels there are; a group no larger than a step stays whole.
        kept: how many should stay.
        step: what the number has to be a multiple of.
        at_most: how many are still there; the result is no larger.
    """
    if size <= step:
        return size
    nearest = max(step, round(kept / step) * step)
    return min(nearest, size if at_most == size else at_most // step * step)


def ranking(scores: Sequence[Tensor], gone: Sequence[Tensor]) -> Tensor:
    """The numbers of the groups to which the channels of all groups belong, what is gone first, then the least.

    The most important channel of each group is left out.
    """
    relative = []
    for score, mask in zip(scores, gone, strict=True):
        shifted = score - score[~mask].min().clamp(max=0.0)
        scaled = shifted / shifted[~mask].mean().clamp(min=1e-30)
        scaled[mask] = -1.0
        scaled[scaled.argmax()] = torch.inf
        relative.append(scaled)
    row = torch.cat(relative)
    order = row.argsort(stable=True)
    groups = torch.arange(len(scores)).repeat_interleave(torch.tensor([len(score) for score in scores]))
    return groups[order[row[order] < torch.inf]]


def counts_among(ranked: Tensor, scores: Sequence[Tensor], amount: float) -> list[int]:
    """How many channels of each group are among the first of a ranking, `amount` of all channels."""
    first = ranked[: round(amount * sum(len(score) for score in scores))]
    found: list[int] = torch.bincount(first, minlength=len(scores)).tolist()
    return found


def rounded(groups: Sequence[Group], wanted: Sequence[int], gone: Sequence[Tensor], multiple: int) -> list[int]:
    """How many channels of each group go, when `wanted` should and the number that stays is a multiple."""
    return [
        group.size
        - nearest_kept(
            group.size, group.size - count, lcm(multiple, group.blocks), at_most=group.size - int(mask.sum())
        )
        for group, count, mask in zip(groups, wanted, gone, strict=True)
    ]


def least(scores: Tensor, count: int, gone: Tensor, blocks: int = 1) -> Tensor:
    """A mask, True at the `count` channels of least importance, the same number in each block.

    Channels that went before go first. A number that the blocks cannot share equally is rounded down.
    """
    return places(scores, gone, blocks) < count // blocks


def places(scores: Tensor, gone: Tensor, blocks: int = 1) -> Tensor:
    """How many channels of its block go before each channel, (channels,)."""
    order = torch.where(gone, -torch.inf, scores).reshape(blocks, -1).argsort(dim=1, stable=True)
    return order.argsort(dim=1, stable=True).reshape(-1)


def _scores(model: nn.Module, path: str, side: str, size: int, scorer: Scorer) -> Tensor | None:
    if not scorer.criterion.scores_weights():
        return scorer.channel_scores(model, path, side, size)
    layer = model.get_submodule(path)
    scores = scorer.weight_scores(f"{path}.weight", layer.weight) if is_layer(layer) else None
    return None if scores is None else channel_sums(layer, side, scores)
