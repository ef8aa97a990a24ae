"""Magnitude pruning: the schedule of the share that is gone, and which single weights go.

    s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0))^3        for t in [t_0, t_1]
    w'   = w * 1[w is not among the round(s * n) smallest |w|]

s(t) is the share of removed weights at progress t, s_i before and s_f after the ramp: many go early, while
the network still has what it takes to recover, and few late. Removed weights stay removed, so that the
removed set only grows. Equal magnitudes are told apart by their position: the number is always exact.

Source: Han et al. 2015, Learning both weights and connections for efficient neural networks, sec. 3
(magnitudes, retraining); Zhu & Gupta 2017, To prune, or not to prune, eq. 1 (the ramp).
Cost: one selection of linear expected time over the weights per update of the masks; no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UPDATES = 100
"""Into how many steps the ramp is cut; Zhu & Gupta 2017, sec. 3, update the masks every 100 training steps."""


def cubic(progress: float, *, start: float, end: float, final: float, initial: float = 0.0) -> float:
    """The share that is gone at `progress`, all in [0, 1] and `start` < `end`."""
    return final + (initial - final) * (1 - ramp(progress, start, end)) ** 3


def ramp(progress: float, start: float, end: float) -> float:
    """How much of the way from `start` to `end` is done, in [0, 1]."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))


def smallest(weights: Sequence[Tensor], count: int, gone: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Masks, True at the `count` entries of smallest magnitude over all `weights` together.

    Args:
        weights: tensors of any shapes.
        count: how many go.
        gone: masks of what is already removed, which goes first.

    Returns:
        a boolean tensor per weight, in its shape.
    """
    magnitudes = torch.cat([weight.detach().abs().reshape(-1).float() for weight in weights])
    if gone is not None:
        magnitudes[torch.cat([mask.reshape(-1) for mask in gone])] = -1.0
    chosen = torch.zeros(len(magnitudes), dtype=torch.bool, device=magnitudes.device)
    chosen[torch.topk(magnitudes, count, largest=False).indices] = True
    pieces = torch.split(chosen, [weight.numel() for weight in weights])
    return [piece.reshape(weight.shape) for piece, weight in zip(pieces, weights, strict=True)]


def removed(weights: Sequence[Tensor], share: float, *, whole: bool, gone: Sequence[Tensor]) -> list[Tensor]:
    """Masks of what is removed at `share`: round(share * n) entries of each weight, or of all together.

    Whatever is in `gone` already stays in the result, even if it is more than the share.
    """
    if whole:
        total = sum(weight.numel() for weight in weights)
        already = sum(int(mask.sum()) for mask in gone)
        return smallest(weights, max(round(share * total), already), gone)
    return [
        smallest([weight], max(round(share * weight.numel()), int(mask.sum())), [mask])[0]
        for weight, mask in zip(weights, gone, strict=True)
    ]
