"""Low-rank factors of weights, with the error known before anything is replaced.

A matrix, by the singular values s_1 >= s_2 >= ...:

    W ~ (U_r sqrt(S_r)) (sqrt(S_r) V_r^T),    ||W - W_r||_F^2 = sum over i > r of s_i^2

which no matrix of rank r betters (Eckart and Young 1936, The approximation of one matrix by another of lower
rank). `kept` is 1 - ||W - W_r||^2 / ||W||^2, the share of the squared singular values that stays.

A convolution W (out, in, kH, kW) becomes a chain of smaller ones:

    spatial   (in -> r, kH x 1), (r -> out, 1 x kW)
              the SVD of W as a matrix (in kH, out kW)
              Jaderberg, Vedaldi, Zisserman 2014, Speeding up convolutional neural networks with low rank
              expansions, sec. 2, scheme 2; the closed form is theorem 1 of Tai et al. 2016, Convolutional
              neural networks with low-rank regularization
    channel   (in -> r, kH x kW), (r -> out, 1 x 1)
              the SVD of W as a matrix (out, in kH kW)
              Denton et al. 2014, Exploiting linear structure within convolutional networks, sec. 3; Zhang et al.
              2015, Accelerating very deep convolutional networks, sec. 3.1 (there of the responses)
    tucker    (in -> r_in, 1 x 1), (r_in -> r_out, kH x kW), (r_out -> out, 1 x 1)
              W ~ core x_out U_out x_in U_in: Kim et al. 2016, Compression of deep convolutional neural networks
              for fast and low power mobile applications, sec. 3; the higher-order SVD gives the start
              (De Lathauwer et al. 2000, A multilinear singular value decomposition), which orthogonal
              iterations improve (the same authors, On the best rank-1 and rank-(R1, ..., RN) approximation)

Cost: one SVD per layer in float64, O(m n min(m, n)) for an (m, n) matrix; no data.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 10
"""Rounds of orthogonal iteration; each can only lower the error."""


def kept_by_rank(values: Tensor) -> Tensor:
    """The share of the squared singular values that the first 1, 2, ... of them hold, (n,)."""
    squares = values.double().square()
    return (squares.cumsum(0) / squares.sum()).clamp(max=1.0)


def matrix_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors (m, rank) and (rank, n) whose product is nearest to a matrix (m, n)."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def spatial_matrix(weight: Tensor) -> Tensor:
    """A kernel (out, in, kH, kW) as a matrix (in kH, out kW)."""
    outputs, inputs, height, width = weight.shape
    return weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)


def spatial_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The kernels (rank, in, kH, 1) and (out, rank, 1, kW) of a kernel (out, in, kH, kW)."""
    outputs, inputs, height, width = weight.shape
    left, right = matrix_factors(spatial_matrix(weight), rank)
    vertical = left.reshape(inputs, height, rank, 1).permute(2, 0, 1, 3)
    horizontal = right.reshape(rank, outputs, width, 1).permute(1, 0, 3, 2)
    return vertical.contiguous(), horizontal.contiguous()


def channel_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The kernels (rank, in, kH, kW) and (out, rank, 1, 1) of a kernel (out, in, kH, kW)."""
    left, right = matrix_factors(weight.flatten(1), rank)
    return right.reshape(rank, *weight.shape[1:]), left.reshape(weight.shape[0], rank, 1, 1)


def channel_bases(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (out, n) and (in, m) of the output and input channels, the most important first."""
    return _basis(weight.double()), _basis(weight.double().transpose(0, 1))


def kept_by_ranks(weight: Tensor) -> Tensor:
    """The share of ||W||^2 that the higher-order SVD keeps with r_out and r_in channels, (n, m).

    Entry [r_out - 1, r_in - 1] is exact for the higher-order SVD, and a lower bound with orthogonal iterations.
    """
    core = _project(weight.double(), *channel_bases(weight))
    squares = core.square().sum(dim=(2, 3))
    return (squares.cumsum(0).cumsum(1) / squares.sum()).clamp(max=1.0)


def tucker_factors(
    weight: Tensor, rank_out: int, rank_in: int, iterations: int = ITERATIONS
) -> tuple[Tensor, Tensor, Tensor]:
    """The bases (in, rank_in) and (out, rank_out) and the core (rank_out, rank_in, kH, kW) of a kernel.

    A basis that keeps every channel is the identity.

    Returns:
        (basis_in, core, basis_out) with W ~ core x_out basis_out x_in basis_in.
    """
    weight = weight.double()
    basis_out, basis_in = _basis(weight, rank_out), _basis(weight.transpose(0, 1), rank_in)
    for _ in range(iterations):
        basis_out = _basis(torch.einsum("oihw,ir->orhw", weight, basis_in), rank_out)
        basis_in = _basis(torch.einsum("oihw,or->irhw", weight, basis_out), rank_in)
    return basis_in, _project(weight, basis_out, basis_in), basis_out


def _basis(tensor: Tensor, rank: int | None = None) -> Tensor:
    """An orthonormal basis of the first axis, the directions that hold the most first."""
    if rank == tensor.shape[0]:
        return torch.eye(rank, dtype=tensor.dtype, device=tensor.device)
    left: Tensor = torch.linalg.svd(tensor.flatten(1), full_matrices=False)[0]
    return left[:, :rank]


def _project(weight: Tensor, basis_out: Tensor, basis_in: Tensor) -> Tensor:
    return torch.einsum("oihw,or,is->rshw", weight, basis_out, basis_in)
