"""Convolutions in groups: each group of input channels is filtered by itself, then 1 x 1 mixes what they give.

    W[:, j] ~ U_j V_j,    U_j (out, r), V_j (r, in/g kH kW)                 the SVD of W[:, j], for every group j

    (in -> g r, kH x kW in g groups holding V_1 ... V_g), (g r -> out, 1 x 1 holding [U_1 ... U_g])

    ||W - W'||^2 = sum over j, and over i > r, of s_ji^2                    (s_ji: the singular values of W[:, j])

which no other filters in these groups with r channels each can better, since the groups share no entry of W.

    separable   g = in: r filters for each input channel, then 1 x 1
                Guo et al. 2018, Network decoupling: from regular to depthwise separable convolutions, sec. 3.1 and
                theorem 1 (there depthwise before pointwise, DW+PW, with r blocks)
    group       1 < g < in
                Peng et al. 2018, Extreme network compression via filter group approximation, sec. 3.1 and eq. 3
                (there r = out / g)

g = 1 is `channel` in `lowrank.py`. Ranges: 1 <= r <= min(out, in/g kH kW). Cost: g SVDs of (out, in/g kH kW) in
float64; no data.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from compress_factorize.inputs import Inputs
from compress_factorize.pieces import Area, Candidates, Chain, Layer, Piece, multiples_to, weight_of


def group_matrices(weight: Tensor, groups: int) -> Tensor:
    """A kernel (out, in, kH, kW) as the matrices (groups, out, in / groups kH kW) of its groups of inputs."""
    outputs, inputs, height, width = weight.shape
    columns = inputs // groups * height * width
    return weight.reshape(outputs, groups, columns).transpose(0, 1)


def kept_by_group_rank(weight: Tensor, groups: int) -> Tensor:
    """The share of ||W||^2 that 1, 2, ... channels for each group keep, (n,)."""
    squares: Tensor = torch.linalg.svdvals(group_matrices(weight.double(), groups)).square().sum(dim=0)
    return (squares.cumsum(0) / squares.sum()).clamp(max=1.0)


def grouped_factors(weight: Tensor, groups: int, rank: int) -> tuple[Tensor, Tensor]:
    """The kernels (groups rank, in / groups, kH, kW) and (out, groups rank, 1, 1) of a kernel (out, in, kH, kW)."""
    outputs, inputs, height, width = weight.shape
    left, values, right = torch.linalg.svd(group_matrices(weight.double(), groups), full_matrices=False)
    root = values[:, :rank].sqrt()
    filters = root[:, :, None] * right[:, :rank]
    mixing = (left[:, :, :rank] * root[:, None, :]).permute(1, 0, 2)
    return (
        filters.reshape(groups * rank, inputs // groups, height, width),
        mixing.reshape(outputs, groups * rank, 1, 1).contiguous(),
    )


class Grouped(Chain):
    """Two pieces: a convolution in groups, then 1 x 1. The ranks are the number of groups and the rank of each."""

    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """Every number of groups with every rank for which the channels between are a multiple."""
        weight = weight_of(layer)
        outputs, channels, height, width = weight.shape
        ranks, kept = [torch.zeros(0, 2, dtype=torch.long)], [torch.zeros(0, dtype=torch.float64)]
        for groups in self.numbers(channels):
            found = kept_by_group_rank(weight, groups)
            between = multiples_to(groups * len(found), multiple)
            rank = between[between % groups == 0] // groups
            ranks.append(torch.stack([torch.full_like(rank, groups), rank], dim=1))
            kept.append(found[rank - 1])
        every = torch.cat(ranks)
        parameters = every[:, 1] * channels * height * width + every.prod(dim=1) * outputs
        return Candidates(ranks=every, kept=torch.cat(kept), parameters=parameters, macs=parameters * area.outputs)

    def split(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> list[Piece]:
        """Two pieces."""
        groups, rank = ranks
        filters, mixing = grouped_factors(weight_of(layer), groups, rank)
        return [Piece(filters, (0, 1), groups), Piece(mixing)]

    @abstractmethod
    def numbers(self, channels: int) -> list[int]:
        """The numbers of groups to try."""


class Separable(Grouped):
    """A convolution as filters for each input channel, then 1 x 1."""

    def numbers(self, channels: int) -> list[int]:
        """As many as input channels."""
        return [channels]


class Group(Grouped):
    """A convolution as one in groups, then 1 x 1."""

    def numbers(self, channels: int) -> list[int]:
        """The divisors between 1 and the number of input channels."""
        return [number for number in range(2, channels) if channels % number == 0]
