"""Cutting examples into parts that hold every class in its share.

Examples are shuffled, ranked within their class, and ordered by (rank + 1/2) / size of the class. Every stretch of
that order holds each class in its share to within two examples, so that cutting it gives stratified parts of exactly
the wanted sizes. Cost: two sorts, O(n log n).
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def cut(order: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The last parts of `order` with the wanted sizes, after the first part, which is what they leave."""
    return order.split([len(order) - sum(sizes), *sizes])
