"""Weights that share a few values: k-means in one dimension, and the values trained.

    minimise  sum over k of sum over w in cluster k of (w - c_k)^2

Lloyd's iterations on sorted weights: a cluster is a run of neighbours whose ends lie half way between centroids, and
its mean comes from running sums. Centroids begin evenly spaced over the range (linear, best for trained weights since
large ones matter), or at even quantiles (density). A weight that holds zeros keeps a level that is exactly zero.

While the network trains, each weight stays in its cluster, and the gradient of a centroid is the sum of those of its
weights; the level of zero does not move.

Source: Han et al. 2016, Deep Compression, sec. 3, fig. 3 and eq. 2-3. Ranges: 2 to 256 clusters. Cost: one sort, and
k log n per iteration.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from compress_codes.coding import Coding
from compress_codes.training import Coder

Init = Literal["linear", "density"]
ITERATIONS = 300


def kmeans(values: Tensor, clusters: int, init: Init = "linear") -> Tensor:
    """The centroids of values, sorted, (at most `clusters`,); empty clusters are left out.

    Args:
        values: any shape, not empty.
        clusters: how many there may be.
        init: where they begin.
    """
    ordered = values.flatten().double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    if init == "linear":
        centroids = torch.lerp(ordered[0], ordered[-1], torch.linspace(0, 1, clusters, dtype=torch.float64))
    else:
        places = (torch.arange(clusters, dtype=torch.float64) + 0.5) / clusters * len(ordered)
        centroids = torch.unique(ordered[places.long()])
    before = None
    for _ in range(ITERATIONS):
        ends = torch.searchsorted(ordered, middles(centroids), right=True)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(ordered))])
        if before is not None and torch.equal(ends, before):
            break
        sizes = ends.diff()
        means = (sums[ends[1:]] - sums[ends[:-1]]) / sizes.clamp(min=1)
        centroids = means[sizes > 0]
        before = ends[:-1][sizes > 0]
        before = torch.cat([before, ends[-1:]])
    return centroids.to(values.dtype)


def middles(levels: Tensor) -> Tensor:
    """Where the nearest level changes, between each two neighbours of sorted levels."""
    return (levels[1:] + levels[:-1]) / 2


def codebook(values: Tensor, clusters: int, init: Init = "linear") -> Tensor:
    """The levels of values, sorted; one is zero if a value is."""
    zeros = values == 0
    if not zeros.any():
        return kmeans(values, clusters, init)
    zero = values.new_zeros(1)
    if zeros.all():
        return zero
    found: Tensor = torch.cat([kmeans(values[~zeros], clusters - 1, init), zero]).sort().values
    return found


def with_zero(levels: Tensor, weight: Tensor) -> Tensor:
    """Sorted levels whose smallest magnitude is zero, if the weight holds zeros."""
    if not (weight == 0).any() or (levels == 0).any():
        return levels
    changed = levels.detach().clone()
    changed[levels.abs().argmin()] = 0.0
    return changed


class Book(nn.Module):
    """The levels of one weight, or of several.

    Args:
        clusters: how many levels there are.
        init: where k-means begins.
    """

    bounds: Tensor

    def __init__(self, clusters: int, init: Init = "linear") -> None:
        super().__init__()
        self.clusters, self.init = clusters, init
        self.levels = nn.Parameter(torch.zeros(clusters))
        self.register_buffer("bounds", torch.zeros(clusters - 1))
        self.register_buffer("moves", torch.ones(clusters, dtype=torch.bool))

    moves: Tensor
    """Whether a level trains; that of zero does not."""

    @torch.no_grad()
    def fit(self, weights: list[Tensor]) -> None:
        """Take the levels from weights. Where there are fewer, the last one stands in the places that are left."""
        values = torch.cat([weight.flatten() for weight in weights])
        found = codebook(values.cpu(), self.clusters, self.init).to(self.levels.device)
        self.levels.copy_(torch.cat([found, found[-1:].expand(self.clusters - len(found))]))
        self.bounds.copy_(middles(self.levels))
        self.moves.copy_(self.levels != 0)

    def places(self, weight: Tensor) -> Tensor:
        """The cluster of each entry of a weight."""
        return torch.bucketize(weight, self.bounds)


class BookCoder(Coder):
    """A weight with a codebook; the levels train, and the weight itself does not, so that it stays in its clusters.

    Args:
        book: its levels.
        bits: the width of a code.
        axis: on which the output channels of the weight lie.
    """

    freezes = True

    def __init__(self, book: Book, bits: int, axis: int = 0) -> None:
        super().__init__(axis, "tensor")
        self.levels, self.bits = book, bits

    @property
    def book(self) -> nn.Module:
        """The codebook."""
        return self.levels

    @torch.no_grad()
    def settle(self, weights: list[nn.Parameter]) -> None:
        """Cluster the weights."""
        self.levels.fit([weight.detach() for weight in weights])

    def coded(self, weight: Tensor) -> Tensor:
        """The level of each entry, with the gradient of the levels; what is zero stays zero."""
        trained = self.levels.levels
        levels = torch.where(self.levels.moves, trained, trained.detach())
        found = levels[self.levels.places(weight.detach())]
        return found * (weight.detach() != 0)

    def coding(self, weight: Tensor) -> Coding:
        """The clusters of the entries, and the levels."""
        layout = self.rows(weight)
        levels = with_zero(self.levels.levels, weight)
        places = self.levels.places(weight)
        places = torch.where(weight == 0, levels.abs().argmin(), places)
        return Coding(layout, self.bits, layout.split(places.to(torch.uint8)), levels=levels)
