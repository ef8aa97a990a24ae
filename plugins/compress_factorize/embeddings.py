"""An embedding of low rank: a table of narrow rows, and a linear layer that widens them.

    E (words, width) ~ L R,    L (words, r) the rows that are looked up, R (r, width) the linear layer, without bias

by the SVD; the error is that of `lowrank.py`. A row of zeros stays one exactly, so that padding stays nothing, and
`padding_idx` still gets no gradient.

Source: Lan et al. 2020, ALBERT: a lite BERT for self-supervised learning of language representations, sec. 3.1
(factorized embedding parameterization, there from the start); Chen et al. 2018, GroupReduce: block-wise low-rank
approximation for neural language model shrinking, sec. 3 (with its groups and frequencies left out).
Ranges: 1 <= r <= min(words, width). Cost: one SVD in float64; no data. Looking a row up is free, and the linear layer
is not: this saves parameters and costs r width multiplications for each word.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress_factorize.inputs import Inputs
from compress_factorize.lowrank import kept_by_rank, matrix_factors
from compress_factorize.pieces import Area, Candidates, Factors, Layer, Method, error_of, multiples_to, weight_of


def embedding_factors(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The narrow table (words, rank) and the rows (rank, width) that widen it; rows of zeros stay exactly zero."""
    left, right = matrix_factors(table, rank)
    return torch.where(table.any(dim=1, keepdim=True), left, 0), right


class Lookup(Method):
    """An embedding as a narrower one and a linear layer."""

    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """One rank."""
        table = weight_of(layer)
        words, width = table.shape
        kept = kept_by_rank(torch.linalg.svdvals(table))
        ranks = multiples_to(len(kept), multiple)
        return Candidates(
            ranks=ranks[:, None],
            kept=kept[ranks - 1],
            parameters=ranks * (words + width),
            macs=ranks * width * area.outputs,
        )

    def unfoldings(self, layer: Layer) -> list[Tensor]:
        """The table."""
        return [weight_of(layer)]

    def factors(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> Factors:
        """The embedding and the linear layer."""
        assert isinstance(layer, nn.Embedding)
        table = weight_of(layer)
        left, right = embedding_factors(table, ranks[0])
        narrow = nn.Embedding(
            len(left),
            ranks[0],
            padding_idx=layer.padding_idx,
            scale_grad_by_freq=layer.scale_grad_by_freq,
            sparse=layer.sparse,
            _weight=left.to(layer.weight),
        )
        wide = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, ranks[0], table.shape[1], bias=False, device=layer.weight.device, dtype=layer.weight.dtype
        )
        with torch.no_grad():
            wide.weight.copy_(right.t())
        pieces = nn.Sequential(narrow, wide).requires_grad_(layer.weight.requires_grad).train(layer.training)
        return Factors(pieces, tuple(ranks), error_of(layer, table - left @ right))

    def dense(self, layer: Layer, area: Area) -> tuple[int, int]:
        """Its parameters, and no multiplications."""
        return layer.weight.numel(), 0

    def saving(self, found: Candidates, layer: Layer, area: Area) -> Tensor:
        """Those with fewer parameters: it always costs multiplications."""
        return found.parameters < layer.weight.numel()
