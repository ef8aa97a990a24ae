"""Affine quantization: real numbers on a grid of integers.

    q = clamp(round(x / scale) + zero_point, lowest, highest)        x' = scale * (q - zero_point)

Weights lie symmetrically around zero in [-127, 127], with one scale per output channel and no zero point;
activations are unsigned, in [0, 255], and their range always holds zero, so that zero is exact: a padded
pixel and a removed weight stay what they are, and after a ReLU the zero point is 0.

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


def symmetric_scale(weight: Tensor) -> Tensor:
    """One scale per output channel, `max |w| / 127`; 1 for a channel of zeros, or of numbers too small for a scale.

    Args:
        weight: (out, ...), any further axes.

    Returns:
        (out,), positive.
    """
    scale = weight.detach().abs().reshape(len(weight), -1).amax(1) / WEIGHT_HIGHEST
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def asymmetric_grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the unsigned grid over [low, high], widened to hold zero.

    Args:
        low: (), the smallest value.
        high: (), the largest value.

    Returns:
        scale (), positive, and zero point (), a whole number in [0, 255], both float32.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    width = (high - low) / (ACTIVATION_HIGHEST - ACTIVATION_LOWEST)
    scale = torch.where(width > torch.finfo(torch.float32).tiny, width, torch.ones_like(width))
    zero_point = (-low / scale).round().clamp(ACTIVATION_LOWEST, ACTIVATION_HIGHEST)
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


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """A weight (out, ...) on the symmetric grids of its own output channels."""
    scale = per_channel(symmetric_scale(weight), weight.ndim)
    return fake_quantize(weight, scale, 0, WEIGHT_LOWEST, WEIGHT_HIGHEST)


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
