"""Batch normalization and biases folded into integer weights.

    y = gamma * (w * x + b - mean) / sigma + beta,   sigma = sqrt(variance + eps)

is the layer with the weight w * g and the bias (b - mean) * g + beta, where g = gamma / sigma. With one
symmetric scale per output channel the fold is exact: the integers stay, the scale is multiplied by |g|, and
where g is negative the integers change their sign, which [-127, 127] allows.

The bias is an int32 on the grid of the accumulated products, scale(input) * scale(weight), as integer
kernels want it. Source: Jacob et al. 2018, sec. 2.4 and 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress_quantize.affine import BIAS_HIGHEST, BIAS_LOWEST, per_channel

LARGEST_BIAS = 2**30
"""Largest bias in steps of its grid; half of int32, the rest is for the products."""


@dataclass(frozen=True)
class Integers:
    """A layer's weight as whole numbers (out, ...) in [-127, 127], their scale (out,) and a real bias (out,)."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Normalization:
    """What a BatchNorm does in eval mode: all of shape (out,)."""

    mean: Tensor
    variance: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float


def fold(layer: Integers, norm: Normalization) -> Integers:
    """The layer and the normalization behind it as one layer."""
    factor = norm.gamma / torch.sqrt(norm.variance + norm.eps)
    sign = torch.where(factor < 0, -1.0, 1.0)
    bias = torch.zeros_like(norm.mean) if layer.bias is None else layer.bias
    return Integers(
        weight=layer.weight * per_channel(sign, layer.weight.ndim),
        scale=layer.scale * factor.abs(),
        bias=(bias - norm.mean) * factor + norm.beta,
    )


def with_integer_bias(layer: Integers, input_scale: Tensor, finer: int = 1) -> tuple[Integers, Tensor]:
    """Put the bias on the grid of the products; the result's bias holds whole numbers.

    A channel whose weights are nearly nothing beside its bias gets a coarser scale, so that the bias fits.

    Args:
        layer: with a real bias, or none.
        input_scale: (), the scale of the layer's input.
        finer: by how many times the weight that kernels read is finer than these integers.

    Returns:
        the layer, and the scale of its bias (out,).
    """
    tiny = torch.finfo(torch.float32).tiny
    bias = torch.zeros_like(layer.scale) if layer.bias is None else layer.bias
    needed = (bias.abs() / (input_scale * LARGEST_BIAS)).clamp(min=tiny / input_scale.clamp(max=1.0)) * finer
    scale = torch.maximum(layer.scale, needed)
    weight = torch.round(layer.weight * per_channel(layer.scale / scale, layer.weight.ndim))
    bias_scale = input_scale * (scale / finer)
    whole = torch.round(bias.double() / bias_scale.double()).clamp(BIAS_LOWEST, BIAS_HIGHEST)
    return Integers(weight, scale, None if layer.bias is None else whole), bias_scale
