"""What a weight or a channel is worth: the equations of the built-in criteria, over tensors.

    l1                |w|                                           Han et al. 2015, sec. 3; Li et al. 2017, sec. 3.1
    l2                w^2, pooled by the square root                Fang et al. 2023, DepGraph, eq. 4
    taylor            g w, pooled by the magnitude                  Molchanov et al. 2017, eq. 8; 2019, eq. 8
    fisher            1/2 g^2 w^2                                   LeCun et al. 1990, eq. 5; Theis et al. 2018, eq. 9
    second-moment     |w| sqrt(E[g^2])                              the root of fisher, E as in Kingma & Ba 2015, Adam
    movement          -sum over updates of g w                      Sanh et al. 2020, eq. 5
    scale             |gamma| of the norm behind a channel          Liu et al. 2017, Network slimming, sec. 3
    geometric-median  sum over j of ||F_i - F_j||_2                 He et al. 2019, FPGM, eq. 4 to 6
    activation        mean of |a| over a channel's values           Molchanov et al. 2017, sec. 2.2
    apoz              1 - mean of 1[a <= 0] over them               Hu et al. 2016, Network trimming, eq. 1
    wanda             |w| ||a||_2 of the input that it multiplies   Sun et al. 2024, Wanda, eq. 1

g is the gradient of the loss with respect to w, F_i the weights of filter i. The first-order term estimates how much
the loss changes when w becomes zero; for a set of weights the terms are added before the magnitude is taken, so
that changes which undo one another cost nothing. Fisher is the second-order term with the Hessian's diagonal
estimated by the mean of g^2: over ten updates for fisher, over a thousand for second-moment. Near a minimum the first
order vanishes and the second remains.

Ranges: all finite; only movement and a single Taylor term can be negative, before pooling. Cost: l1, l2 and scale one
pass over the weights; geometric-median O(out^2 n) per layer; the others a few batches, forward or backward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def at_least_single(values: Tensor) -> Tensor:
    """The values in float32, or float64 if they are: squares of small float16 numbers would be zero."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """The change of the loss, to first order and with the sign turned, when each weight becomes zero."""
    return weight.detach() * gradient


def second_order(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """The change of the loss by the diagonal of the Fisher information, when each weight becomes zero."""
    return 0.5 * squared_gradient * at_least_single(weight.detach()).square()


def crowding(alive: Tensor, power: float) -> Tensor:
    """(row density * column density / density^2)^power for each entry of a weight, in its shape.

    The weight is seen as a matrix (outputs, all else). What stands alone in its row and column costs most where
    positions are coded, and keeps both from going. As a share of the whole weight's density, the factor is about one on
    average and moves no weights from one layer to another. A density is at least that of one entry.
    """
    matrix = alive.flatten(1).to(torch.float32) if alive.ndim > 1 else alive.to(torch.float32)[None]
    rows, columns = (matrix.mean(axis, keepdim=True).clamp(min=1 / matrix.shape[axis]) for axis in (1, 0))
    whole = matrix.mean().clamp(min=1 / matrix.numel())
    return (rows * columns / whole.square()).pow(power).reshape(alive.shape)


def distances(filters: Tensor) -> Tensor:
    """For each row of (channels, n) the sum of its distances to all rows: small where others can stand in for it."""
    filters = at_least_single(filters)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def rows(layer: _ConvNd | nn.Linear, side: str) -> Tensor:
    """The weights of each channel that a layer writes (`out`), or reads (`in`), without groups: (channels, n)."""
    transposed = isinstance(layer, _ConvNd) and layer.transposed
    axis = int((side == "out") == transposed)
    return layer.weight.detach().movedim(axis, 0).flatten(1)


def input_axis(layer: nn.Module) -> int:
    """Which axis of a layer's input counts the channels."""
    return 1 if isinstance(layer, _ConvNd) else -1


def by_channel(values: Tensor, layer: nn.Module) -> Tensor:
    """A layer's inputs as (channels, everything else)."""
    unbatched = isinstance(layer, _ConvNd) and values.ndim == layer.weight.ndim - 1
    axis = 0 if unbatched else input_axis(layer)
    return values.detach().movedim(axis, 0).flatten(1)
