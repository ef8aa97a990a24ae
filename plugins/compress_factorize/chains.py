"""The chains that singular value decompositions give: two linear layers, and the splits of a convolution.

The mathematics is in `lowrank.py` for the weight alone, and in `responses.py` where the inputs are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress_factorize.inputs import Inputs
from compress_factorize.lowrank import (
    kept_by_rank,
    kept_by_ranks,
    matrix_factors,
    spatial_factors,
    spatial_matrix,
    tucker_factors,
)
from compress_factorize.pieces import Area, Candidates, Chain, Layer, Piece, multiples_to, weight_of
from compress_factorize.responses import (
    kept_by_channel_ranks,
    kept_by_spatial_rank,
    response_factors,
    spatial_pieces,
    tucker_pieces,
    whitened,
)


class Matrix(Chain):
    """A linear layer as two; a convolution as (in -> r, kH x kW), (r -> out, 1 x 1)."""

    sees_inputs = True

    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """One rank."""
        weight = weight_of(layer).flatten(1)
        kept = kept_by_rank(torch.linalg.svdvals(weight if inputs is None else whitened(weight, inputs.moment)))
        return of_one_rank(kept, (weight.shape[1], area.outputs), (weight.shape[0], area.outputs), multiple)

    def unfoldings(self, layer: Layer) -> list[Tensor]:
        """The weight as a matrix (out, in kH kW)."""
        return [weight_of(layer).flatten(1)]

    def split(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> list[Piece]:
        """Two pieces."""
        weight = weight_of(layer)
        matrix = weight.flatten(1)
        left, right = (
            matrix_factors(matrix, ranks[0]) if inputs is None else response_factors(matrix, inputs.moment, ranks[0])
        )
        if isinstance(layer, nn.Linear):
            return [Piece(right), Piece(left)]
        return [Piece(right.reshape(-1, *weight.shape[1:]), (0, 1)), Piece(left[:, :, None, None])]


class Spatial(Chain):
    """A convolution as (in -> r, kH x 1), (r -> out, 1 x kW)."""

    sees_inputs = True

    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """One rank."""
        weight = weight_of(layer)
        outputs, channels, height, width = weight.shape
        if inputs is None:
            kept = kept_by_rank(torch.linalg.svdvals(spatial_matrix(weight)))
        else:
            kept = kept_by_spatial_rank(weight, inputs.moment)
        return of_one_rank(kept, (channels * height, area.between), (outputs * width, area.outputs), multiple)

    def unfoldings(self, layer: Layer) -> list[Tensor]:
        """The weight as a matrix (in kH, out kW)."""
        return [spatial_matrix(weight_of(layer))]

    def split(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> list[Piece]:
        """Two pieces."""
        weight = weight_of(layer)
        vertical, horizontal = (
            spatial_factors(weight, ranks[0]) if inputs is None else spatial_pieces(weight, inputs.moment, ranks[0])
        )
        return [Piece(vertical, (0,)), Piece(horizontal, (1,))]


class Tucker(Chain):
    """A convolution as (in -> r_in, 1 x 1), (r_in -> r_out, kH x kW), (r_out -> out, 1 x 1).

    A 1x1 piece that would keep every channel is left out and costs nothing.
    """

    sees_inputs = True

    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """Two ranks: of the outputs, of the inputs."""
        weight = weight_of(layer)
        outputs, channels, height, width = weight.shape
        kept = kept_by_ranks(weight) if inputs is None else kept_by_channel_ranks(weight, inputs.moment)
        grid = torch.cartesian_prod(*(multiples_to(largest, multiple) for largest in kept.shape))
        rank_out, rank_in = grid[:, 0], grid[:, 1]
        first = torch.where(rank_in < channels, channels * rank_in, 0)
        core = rank_out * rank_in * height * width
        last = torch.where(rank_out < outputs, rank_out * outputs, 0)
        return Candidates(
            ranks=grid,
            kept=kept[rank_out - 1, rank_in - 1],
            parameters=first + core + last,
            macs=first * area.inputs + (core + last) * area.outputs,
        )

    def unfoldings(self, layer: Layer) -> list[Tensor]:
        """The weight by its outputs and by its inputs."""
        weight = weight_of(layer)
        return [weight.flatten(1), weight.transpose(0, 1).flatten(1)]

    def split(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> list[Piece]:
        """One to three pieces."""
        weight = weight_of(layer)
        basis_in, core, basis_out = (
            tucker_factors(weight, *ranks) if inputs is None else tucker_pieces(weight, inputs.moment, *ranks)
        )
        pieces = [Piece(core, (0, 1))]
        if ranks[1] < weight.shape[1]:
            pieces.insert(0, Piece(basis_in.t()[:, :, None, None]))
        if ranks[0] < weight.shape[0]:
            pieces.append(Piece(basis_out[:, :, None, None]))
        return pieces


def of_one_rank(kept: Tensor, first: tuple[int, int], second: tuple[int, int], multiple: int) -> Candidates:
    """Candidates of two pieces.

    Args:
        kept: by rank, from 1.
        first: parameters per rank of the first piece, and the positions at which it computes.
        second: those of the second piece.
        multiple: ranks are multiples of this.
    """
    ranks = multiples_to(len(kept), multiple)
    return Candidates(
        ranks=ranks[:, None],
        kept=kept[ranks - 1],
        parameters=ranks * (first[0] + second[0]),
        macs=ranks * (first[0] * first[1] + second[0] * second[1]),
    )
