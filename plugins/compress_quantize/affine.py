"""Affine quantization: real numbers on a grid of integers.

    q = clamp(round(x / scale) + zero_point, lowest, highest)        x' = scale * (q - zero_point)

Weights of b bits lie symmetrically around zero in [-n, n], n = 2^(b-1) - 1 (127 for 8 bits), with one scale per
output channel, or per tensor, and no zero point; activations are unsigned, in [0, 2^b - 1], and their range always
holds zero, so that zero is exact: a padded pixel and a removed weight stay what they are, and after a ReLU the zero
point is 0. b is from 2 to 8.

While a network trains, rounding is passed over by the gradient (straight-through): 1 inside the range and
0 where x was cut off.

Sources: Jacob et al. 2018, Quantization and Training of Neural Networks, eq. 1-4; Bengio et al. 2013,
Estimating or Propagating Gradients Through Stochastic Neurons, sec. 4. Cost: one pass over the tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WEIGHT_LOWEST, WEIGHT_HIGHEST = -127, 127
ACTIVATION_LOWEST, ACTIVATION_HIGHEST = 0, 255
BIAS_LOWEST, BIAS_HIGHEST = -(2**31), 2**31 - 1


def stretch(bits: int) -> int:
    """What the integers of so many bits are multiplied by for kernels of 8 bits.

    No weight changes, since its scale is divided by it; the grid of the products, on which biases lie, gets finer.
    """
    return 1 << (8 - bits)


def highest_activation(bits: int) -> int:
    """The largest integer that an activation of so many bits becomes."""
    return (1 << bits) - 1


def highest_weight(bits: int) -> int:
    """The largest integer that a weight of so many bits becomes; the smallest is its negative."""
    return (1 << (bits - 1)) - 1


def symmetric_scale(weight: Tensor, highest: int = WEIGHT_HIGHEST) -> Tensor:
    """One scale per output channel, `max |w| / highest`; 1 for zeros, or for numbers too small for a scale.

    Args:
        weight: (out, ...), any further axes.
        highest: what the largest magnitude becomes.

    Returns:
        (out,), positive.
    """
    scale = weight.detach().abs().reshape(len(weight), -1).amax(1) / highest
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def asymmetric_grid(low: Tensor, high: Tensor, highest: int = ACTIVATION_HIGHEST) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the unsigned grid over [low, high], widened to hold zero.

    Args:
        low: (), the smallest value.
        high: (), the largest value.
        highest: the largest integer.

    Returns:
        scale (), positive, and zero point (), a whole number in [0, highest], both float32.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    width = (high - low) / (highest - ACTIVATION_LOWEST)
    scale = torch.where(width > torch.finfo(torch.float32).tiny, width, torch.ones_like(width))
    zero_point = (-low / scale).round().clamp(ACTIVATION_LOWEST, highest)
    return scale, zero_point


def per_channel(scale: Tensor, dimensions: int) -> Tensor:
    """A scale (out,) as (out, 1, ..., 1), to go with a weight of so many dimensions."""
    return scale.reshape(-1, *[1] * (dimensions - 1))


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, lowest: int, highest: int) -> Tensor:
    """The integers of x, still as floating-point numbers; scale and zero point are broadcast."""
    return (torch.round(x * (1.0 / scale)) + zero_point).clamp(lowest, highest)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor | int) -> Tensor:
    """The real numbers that the integers stand for."""
    return (integers - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, lowest: int, highest: int) -> Tensor:
    """`dequantize(quantize(x))` with the straight-through gradient."""
    found: Tensor = _FakeQuantize.apply(x, scale, zero_point, (lowest, highest))  # type: ignore[no-untyped-call]
    return found


def fake_quantize_weight(weight: Tensor, scale: Tensor | None = None, highest: int = WEIGHT_HIGHEST) -> Tensor:
    """A weight (out, ...) on the symmetric grids of its output channels, with steps (out,) or those of its ranges."""
    steps = per_channel(symmetric_scale(weight, highest) if scale is None else scale, weight.ndim)
    return fake_quantize(weight, steps, 0, -highest, highest)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, zero_point: Tensor | int, bounds: tuple[int, int]) -> Tensor:
        lowest, highest = bounds
        integers = torch.round(x * (1.0 / scale)) + zero_point
        context.save_for_backward((integers >= lowest) & (integers <= highest))
        return dequantize(integers.clamp(lowest, highest), scale, zero_point)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = context.saved_tensors
        return gradients[0] * inside, None, None, None
