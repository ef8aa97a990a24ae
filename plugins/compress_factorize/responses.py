"""Low-rank factors that keep a layer's responses rather than its weight.

With the second moments C = E[x x^T] of what a layer sees, the loss of its responses is known before anything runs:

    E|(W - W') x|^2 = tr((W - W') C (W - W')^T) = ||(W - W') C^(1/2)||_F^2

A matrix: the singular value decomposition of the whitened weight, W C^(1/2) = U S V^T, gives the best W' of rank r,

    W' = U_r S_r V_r^T C^(-1/2) = U_r U_r^T W,    loss = sum over i > r of s_i^2

in which C is never inverted, so that inputs that span few directions do no harm. For C = 1 it is the plain SVD.
Sources: Zhang et al. 2015, Accelerating very deep convolutional networks, sec. 3.1 (the principal components of the
responses); Chen et al. 2021, DRONE: data-aware low-rank compression, theorem 1; Wang et al. 2025, SVD-LLM, sec. 3.1
(whitening); Yuan et al. 2023, ASVD (its diagonal case).

A convolution in pieces: the first piece V is fixed and the rest is the best possible behind it. Features z = T x,
with T made of V, let the response be regressed on them,

    H = W C T^T (T C T^T)^-1,    explained = ||L^-1 T C W^T||_F^2    with T C T^T = L L^T

and as the first features of an order have the leading block of L, one Cholesky decomposition tells the explained
share of every rank. For `tucker` the outputs are reduced to the principal components of what is explained, the best
choice for this T (reduced-rank regression: Izenman 1975). V starts as the singular vectors of the weight under the
Kronecker approximation C ~ A (x) B, the traces of C over the other axes, and is then improved by alternating: H for V,
and V for H by conjugate gradients on the same loss. Each round can only lower it.

A ridge of `RIDGE` times the mean of C's diagonal stands for directions that the calibration never showed: there
the weight itself decides.

Cost: one decomposition of (in kH kW)^2 per layer, O(d^3), and O(out d^2) per step of the conjugate gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-6
ROUNDS = 3
STEPS = 10
"""Of the conjugate gradients in each round."""


def ridged(moment: Tensor) -> Tensor:
    """The second moments with the ridge on the diagonal."""
    found = moment.clone()
    found.diagonal().add_(RIDGE * moment.diagonal().mean().clamp(min=torch.finfo(moment.dtype).tiny))
    return found


def root_of(moment: Tensor) -> Tensor:
    """A matrix R with R R^T = C, from the eigenvalues; symmetric."""
    values, vectors = torch.linalg.eigh(moment)
    found: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return found


def whitened(matrix: Tensor, moment: Tensor) -> Tensor:
    """The weight in front of inputs without correlation, W C^(1/2), (out, in)."""
    return matrix @ root_of(ridged(moment))


def response_factors(matrix: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors (out, rank) and (rank, in) whose product loses least of the responses.

    Args:
        matrix: (out, in).
        moment: second moments of the inputs, (in, in).
        rank: at most the smaller of the two.
    """
    left: Tensor = torch.linalg.svd(whitened(matrix, moment), full_matrices=False)[0][:, :rank]
    return balanced(left, left.T @ matrix)


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each component's norm shared evenly between the two, which training prefers."""
    scale = (torch.linalg.vector_norm(right, dim=1) / torch.linalg.vector_norm(left, dim=0).clamp(min=1e-30)).sqrt()
    return left * scale, right / scale.clamp(min=1e-30)[:, None]


def spatial_start(weight: Tensor, moment: Tensor) -> Tensor:
    """The vertical kernels (n, in, kH) of a kernel (out, in, kH, kW), the most important first."""
    outputs, inputs, height, width = weight.shape
    whole = moment.reshape(inputs, height, width, inputs, height, width)
    tall = ridged(torch.einsum("iabjcb->iajc", whole).reshape(inputs * height, -1))
    wide = ridged(torch.einsum("iabiad->bd", whole))
    matrix = torch.einsum("oiab,bd->iaod", weight, root_of(wide)).reshape(inputs * height, outputs * width)
    return _leading(matrix, tall).T.reshape(-1, inputs, height)


def channel_start(weight: Tensor, moment: Tensor) -> Tensor:
    """The mixtures (n, in) of the input channels of a kernel (out, in, kH, kW), the most important first."""
    _, inputs, height, width = weight.shape
    whole = moment.reshape(inputs, height * width, inputs, height * width)
    between = ridged(torch.einsum("iaja->ij", whole))
    patch = ridged(torch.einsum("iaib->ab", whole))
    matrix = torch.einsum("oia,ab->iob", weight.flatten(2), root_of(patch)).reshape(inputs, -1)
    return _leading(matrix, between).T


def _leading(matrix: Tensor, moment: Tensor) -> Tensor:
    """M Q for the right singular vectors Q of C^(1/2) M, with unit columns: C^(-1/2) P without the inverse."""
    right: Tensor = torch.linalg.svd(root_of(moment) @ matrix, full_matrices=False)[2]
    found = matrix @ right.T
    norms: Tensor = torch.linalg.vector_norm(found, dim=0)
    return found / norms.clamp(min=1e-30)


def spatial_features(vertical: Tensor, width: int) -> Tensor:
    """T (r kW, in kH kW): what vertical kernels (r, in, kH) see at every column of the patch, by kernel."""
    each = torch.eye(width, dtype=vertical.dtype)
    return torch.einsum("ria,bd->rbiad", vertical, each).reshape(len(vertical) * width, -1)


def channel_features(mixtures: Tensor, area: int) -> Tensor:
    """T (r kH kW, in kH kW): what mixtures (r, in) of channels see at every place of the patch, by mixture."""
    each = torch.eye(area, dtype=mixtures.dtype)
    return torch.einsum("ri,ab->raib", mixtures, each).reshape(len(mixtures) * area, -1)


def explained(matrix: Tensor, moment: Tensor, features: Tensor) -> Tensor:
    """R (features, out) such that R_n^T R_n are the second moments of what the first n features explain."""
    seen = features @ moment
    lower = torch.linalg.cholesky(ridged(seen @ features.T))
    found: Tensor = torch.linalg.solve_triangular(lower, seen @ matrix.T, upper=False)
    return found


def regressed(matrix: Tensor, moment: Tensor, features: Tensor) -> Tensor:
    """H (out, features): the best response to the features."""
    seen = features @ moment
    return torch.cholesky_solve(seen @ matrix.T, torch.linalg.cholesky(ridged(seen @ features.T))).T


def kept_by_spatial_rank(weight: Tensor, moment: Tensor) -> Tensor:
    """The share of E|W x|^2 that 1, 2, ... vertical kernels keep before they are improved, (n,)."""
    moment, matrix, width = ridged(moment), weight.flatten(1), weight.shape[3]
    found = explained(matrix, moment, spatial_features(spatial_start(weight, moment), width))
    return _share(found.square().sum(1).reshape(-1, width).sum(1).cumsum(0), matrix, moment)


def kept_by_channel_ranks(weight: Tensor, moment: Tensor) -> Tensor:
    """The share of E|W x|^2 that r_out and r_in channels keep before they are improved, (n, m)."""
    moment, matrix, area = ridged(moment), weight.flatten(1), weight[0, 0].numel()
    found = explained(matrix, moment, channel_features(channel_start(weight, moment), area))
    components = torch.linalg.svd(matrix @ root_of(moment), full_matrices=False)[0]
    by_input = (found @ components).square().reshape(-1, area, components.shape[1]).sum(1)
    return _share(by_input.T.cumsum(0).cumsum(1), matrix, moment)


def _share(kept: Tensor, matrix: Tensor, moment: Tensor) -> Tensor:
    return (kept / (matrix @ moment).mul(matrix).sum()).clamp(0.0, 1.0)


def spatial_pieces(weight: Tensor, moment: Tensor, rank: int, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """The kernels (rank, in, kH, 1) and (out, rank, 1, kW) that lose little of the responses."""
    outputs, _, _, width = weight.shape
    moment, matrix = ridged(moment), weight.flatten(1)
    vertical = spatial_start(weight, moment)[:rank]
    for turn in range(rounds + 1):
        found = regressed(matrix, moment, spatial_features(vertical, width))
        horizontal = found.reshape(outputs, rank, width)
        if turn < rounds:
            vertical = _improved(vertical, weight, moment, horizontal, "orb,ria->oiab")
    right, left = balanced(horizontal.transpose(1, 2).reshape(-1, rank), vertical.flatten(1))
    horizontal = right.reshape(outputs, width, rank).transpose(1, 2)
    return left.reshape(vertical.shape)[..., None], horizontal[:, :, None, :].contiguous()


def tucker_pieces(
    weight: Tensor, moment: Tensor, rank_out: int, rank_in: int, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor]:
    """The bases (in, rank_in) and (out, rank_out) and the core (rank_out, rank_in, kH, kW), as `tucker_factors`."""
    outputs, inputs, height, width = weight.shape
    moment, matrix = ridged(moment), weight.flatten(1)
    whole = rank_in == inputs
    mixtures = torch.eye(inputs, dtype=weight.dtype) if whole else channel_start(weight, moment)[:rank_in]
    for turn in range(1 if whole else rounds + 1):
        mixtures = torch.linalg.qr(mixtures.T)[0].T if not whole else mixtures
        features = channel_features(mixtures, height * width)
        basis = _components(explained(matrix, moment, features), rank_out)
        core = basis.T @ regressed(matrix, moment, features)
        if not whole and turn < rounds:
            kernel = (basis @ core).reshape(outputs, rank_in, height, width)
            mixtures = _improved(mixtures, weight, moment, kernel, "orab,ri->oiab")
    return mixtures.T, core.reshape(rank_out, rank_in, height, width), basis


def _components(found: Tensor, rank: int) -> Tensor:
    """The leading principal components (out, rank) of explained responses (features, out); all of them: identity."""
    if rank == found.shape[1]:
        return torch.eye(rank, dtype=found.dtype)
    right: Tensor = torch.linalg.svd(found, full_matrices=False)[2]
    return right[:rank].T


def _improved(start: Tensor, weight: Tensor, moment: Tensor, rest: Tensor, product: str) -> Tensor:
    """Some conjugate gradients on tr((W - F(v)) C (W - F(v))^T) over v, where F(v) multiplies v and the other piece.

    Args:
        start: v.
        weight: W, (out, in, kH, kW).
        moment: C.
        rest: the other piece.
        product: F as an einsum of `rest` and v, such as `orb,ria->oiab`.
    """
    inner, outer, _ = product.replace("->", ",").split(",")

    def forward(v: Tensor) -> Tensor:
        return torch.einsum(product, rest, v)

    def seen(kernel: Tensor) -> Tensor:
        weighted = (kernel.flatten(1) @ moment).reshape(kernel.shape)
        return torch.einsum(f"{inner},oiab->{outer}", rest, weighted)

    found = start
    residual = seen(weight - forward(found))
    direction, norm = residual, residual.square().sum()
    for _ in range(STEPS):
        if norm <= torch.finfo(norm.dtype).tiny:
            break
        curved = seen(forward(direction))
        step = norm / (direction * curved).sum()
        found = found + step * direction
        residual = residual - step * curved
        direction, norm = residual + residual.square().sum() / norm * direction, residual.square().sum()
    return found
