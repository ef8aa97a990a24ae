"""Cutting examples into parts that hold every class in its share.

Examples are shuffled, ranked within their class, and ordered by (rank + 1/2) / size of the class. Every stretch of
that order holds each class in its share to within two examples, so that cutting it gives stratified parts of exactly
the wanted sizes. Cost: two sorts, O(n log n).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress_core.errors import DataError


def stratified_order(label: Tensor, seed: int) -> Tensor:
    """A seeded permutation (examples,) whose every stretch holds the classes in their shares.

    Args:
        label: the class of each example (examples,); any integers.
        seed: decides which example stands where.
    """
    shuffled = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    _, kind, sizes = torch.unique(label[shuffled], return_inverse=True, return_counts=True)
    grouped = torch.argsort(kind, stable=True)
    starts = torch.cumsum(sizes, 0) - sizes
    rank = torch.empty_like(grouped)
    rank[grouped] = torch.arange(len(label)) - starts[kind[grouped]]
    place = (rank.double() + 0.5) / sizes[kind].double()
    return shuffled[torch.argsort(place, stable=True)]


def cut(label: Tensor, shares: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    """The indices of what is left, then of one part for each share.

    Args:
        label: the class of each example (examples,); any integers.
        shares: of all examples, each part rounded to whole examples and to one at least.
        seed: decides which example goes where.

    Raises:
        DataError: nothing would be left.
    """
    sizes = [max(1, round(share * len(label))) for share in shares]
    left = len(label) - sum(sizes)
    if left < 1:
        raise DataError(
            f"{len(label)} examples are too few to cut {len(sizes) + 1} splits from",
            mend="give more examples or smaller shares, or the other splits too",
        )
    return stratified_order(label, seed).split([left, *sizes])
