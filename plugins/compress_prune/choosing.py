"""How many channels of each group go, and which.

    I_k = ( sum over all layers of the group of |w|^p over the weights of channel k )^(1/p),  p = 1 or 2

The importance of a channel is the norm of all weights that go with it: the rows that write it and the columns
that read it, in every layer of its group. Per group, the channels of least importance go. Over the whole
network, importances are divided by their mean in the group, since layers differ in scale, and the ranking
decides how many channels each group loses; the most important one of each always stays.

Source: Li et al. 2017, Pruning filters for efficient convnets, sec. 3.1 (norms of filters, l1);
Fang et al. 2023, DepGraph, eq. 4 and sec. 3.4 (the importance of a group, l2).
Cost: one pass over the weights of the groups; no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress_core.channels.coupling import Group
from compress_core.channels.cutting import channel_powers


def importance(model: nn.Module, group: Group, power: int) -> Tensor:
    """The importance of each channel of a group, (size,): the norm of its weights, l1 or l2 by `power`."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        path, side, _ = member.place
        layer = None if side == "parameter" else model.get_submodule(path)
        if isinstance(layer, _ConvNd | nn.Linear):
            powers = channel_powers(layer, "out" if side == "out" else "in", power).cpu().double()
            total.index_add_(0, member.root, powers[member.index])
    return total.pow(1 / power)


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


def counts_gone(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    gone: Sequence[Tensor],
    amount: float,
    multiple: int,
    *,
    whole: bool,
) -> list[int]:
    """How many channels of each group go at `amount`, a share of each group or of all channels together.

    Args:
        groups: what can be pruned.
        scores: the importance of each channel, per group.
        gone: masks of the channels that went before; they count and stay away.
        amount: the share that goes, in (0, 1).
        multiple: what the number that stays has to be a multiple of.
        whole: whether the share is one of all channels together.
    """
    wanted = _ranked(scores, gone, amount) if whole else [round(amount * group.size) for group in groups]
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
    ranked = torch.where(gone, -1.0, scores).reshape(blocks, -1)
    mask = torch.zeros_like(ranked, dtype=torch.bool)
    return mask.scatter_(1, ranked.argsort(dim=1, stable=True)[:, : count // blocks], True).reshape(-1)


def _ranked(scores: Sequence[Tensor], gone: Sequence[Tensor], amount: float) -> list[int]:
    """How many channels of each group are among the least important share of all channels."""
    relative = []
    for score, mask in zip(scores, gone, strict=True):
        scaled = score / score[~mask].mean().clamp(min=1e-30)
        scaled[mask] = -1.0
        scaled[scaled.argmax()] = torch.inf
        relative.append(scaled)
    row = torch.cat(relative)
    order = row.argsort(stable=True)[: round(amount * len(row))]
    chosen = torch.zeros(len(row), dtype=torch.bool)
    chosen[order[row[order] < torch.inf]] = True
    return [int(piece.sum()) for piece in torch.split(chosen, [len(score) for score in scores])]
