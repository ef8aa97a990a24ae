"""A convolution behind fewer input channels: the SVD over the input channels.

    W as a matrix (in, out kH kW) ~ A B,    A (in, r), B (r, out kH kW)

    (in -> r, 1 x 1 holding A^T), (r -> out, kH x kW holding B),    ||W - W'||^2 = sum over i > r of s_i^2

the other of the two reshapes of a kernel into a matrix with all of kH kW on one side; `channel` in `lowrank.py` is the
one over the output channels. It suits layers with more inputs than outputs, and those with a stride less, since the
1 x 1 computes at every input.

Source: Denton et al. 2014, Exploiting linear structure within convolutional networks for efficient evaluation,
sec. 3.2.1 and 3.3 (there after clustering); the same as Tucker-1 along the input channels, Kim et al. 2016, sec. 3.1.
Ranges: 1 <= r <= min(in, out kH kW). Cost: one SVD in float64; no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress_factorize.inputs import Inputs
from compress_factorize.lowrank import kept_by_rank, matrix_factors
from compress_factorize.pieces import Area, Candidates, Chain, Layer, Piece, multiples_to, weight_of


def input_matrix(weight: Tensor) -> Tensor:
    """A kernel (out, in, kH, kW) as a matrix (in, out kH kW)."""
    return weight.transpose(0, 1).flatten(1)


def input_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The kernels (rank, in, 1, 1) and (out, rank, kH, kW) of a kernel (out, in, kH, kW)."""
    left, right = matrix_factors(input_matrix(weight), rank)
    core = right.reshape(rank, weight.shape[0], *weight.shape[2:]).transpose(0, 1)
    return left.t()[:, :, None, None].contiguous(), core.contiguous()


class Input(Chain):
    """A convolution as (in -> r, 1 x 1), (r -> out, kH x kW)."""

    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """One rank."""
        weight = weight_of(layer)
        outputs, channels, height, width = weight.shape
        kept = kept_by_rank(torch.linalg.svdvals(input_matrix(weight)))
        ranks = multiples_to(len(kept), multiple)
        first, second = ranks * channels, ranks * outputs * height * width
        return Candidates(
            ranks=ranks[:, None],
            kept=kept[ranks - 1],
            parameters=first + second,
            macs=first * area.inputs + second * area.outputs,
        )

    def unfoldings(self, layer: Layer) -> list[Tensor]:
        """The weight by its inputs."""
        return [input_matrix(weight_of(layer))]

    def split(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> list[Piece]:
        """Two pieces."""
        first, second = input_factors(weight_of(layer), ranks[0])
        return [Piece(first), Piece(second, (0, 1))]
