"""What sits on an edge of the network: the observer of its range, and the quantizer it becomes.

`ActivationQuantizer` watches a tensor while the network trains (a moving average of the batches' minimum and
maximum, Jacob et al. 2018, sec. 3.1) or while calibration batches pass, and fake-quantizes it once it has seen one.
What counts as the range, either time, is `observing`'s; a histogram takes each calibration batch in and goes.
`Quantizer` is what stays: one scale, one zero point.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn

from compress_quantize.affine import (
    ACTIVATION_HIGHEST,
    ACTIVATION_LOWEST,
    asymmetric_grid,
    fake_quantize,
    highest_activation,
)
from compress_quantize.observing import Histogram, Observing, value_range

MOMENTUM = 0.05
"""Share of a new batch in the moving average of the range."""


class ActivationQuantizer(nn.Module):
    """Observes the range of the tensor that passes, and fake-quantizes it once it is active and knows one."""

    low: Tensor
    high: Tensor
    observed: Tensor

    def __init__(self, observing: Observing = Observing()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.calibrating = False
        self.active = False
        self.observing = observing
        self.histogram: Histogram | None = None
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("observed", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return x of any shape, on the grid of the range seen so far."""
        if self.calibrating:
            self._calibrate(x)
            return x
        if self.training:
            self._follow(x)
        if not (self.active and self.observed):
            return x
        scale, zero_point = self.grid()
        return fake_quantize(x, scale, zero_point, ACTIVATION_LOWEST, self.observing.levels)

    def activate(self) -> None:
        """From now on, round what passes."""
        self.active = True

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the range, two tensors of shape ()."""
        return asymmetric_grid(self.low, self.high, self.observing.levels)

    def restart(self) -> None:
        """Forget the range and calibrate: watch what passes until `calibrating` is set back."""
        self.calibrating = True
        self.histogram = Histogram() if self.observing.of_histogram else None
        for tensor in (self.low, self.high, self.observed):
            tensor.zero_()

    @torch.no_grad()
    def settle(self) -> None:
        """End the calibration: fix the range, in the histogram if there is one."""
        self.calibrating = False
        if self.histogram is not None and self.observed and torch.isfinite(self.high - self.low):
            low, high = self.observing.range_in(self.histogram)
            self.low.copy_(low)
            self.high.copy_(high)
        self.histogram = None

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = self.observing.range_of(x)
        self._move(low, high, MOMENTUM if self.observed else 1.0)

    @torch.no_grad()
    def _calibrate(self, x: Tensor) -> None:
        if self.observing.of_histogram:
            self._count(x)
            return
        low, high = self.observing.range_of(x)
        match self.observing.kind:
            case "moving-average":
                self._move(low, high, MOMENTUM if self.observed else 1.0)
            case "percentile":
                self._move(low, high, 1.0 / (float(self.observed) + 1))
            case _:
                self._hold(low, high)

    def _count(self, x: Tensor) -> None:
        low, high = value_range(x)
        self._hold(low, high)
        if self.histogram is not None and torch.isfinite(high - low):
            self.histogram.add(x)

    def _move(self, low: Tensor, high: Tensor, share: float) -> None:
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self.observed += 1

    def _hold(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
        self.observed += 1


class Quantizer(nn.Module):
    """Rounds a tensor to unsigned integers and gives the real numbers that they stand for.

    Those of fewer than 8 bits are cut off as integers, so that runtimes still join the rounding to what is before it.
    """

    def __init__(self, scale: float, zero_point: int, bits: int = 8) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Return x of any shape, on the grid."""
        grid = (self.scale, self.zero_point, ACTIVATION_LOWEST, ACTIVATION_HIGHEST, torch.uint8)
        integers = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
        if self.bits < 8:
            integers = integers.clamp(max=highest_activation(self.bits))
        found: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(integers, *grid)
        return found

    def extra_repr(self) -> str:
        """The grid."""
        return f"scale={self.scale:.6g}, zero_point={self.zero_point}, bits={self.bits}"
