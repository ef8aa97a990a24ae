"""What sits on an edge of the network: the observer of its range, and the quantizer it becomes.

`ActivationQuantizer` watches a tensor while the network trains (a moving average of the batches' minimum and
maximum, Jacob et al. 2018, sec. 3.1) or while calibration batches pass (their minimum and maximum), and
fake-quantizes it once it has seen one. A percentile takes the place of minimum and maximum, either time.
`Quantizer` is what stays: one scale, one zero point.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn

from compress_quantize.affine import ACTIVATION_HIGHEST, ACTIVATION_LOWEST, asymmetric_grid, fake_quantize

MOMENTUM = 0.05
"""Share of a new batch in the moving average of the range."""


def value_range(x: Tensor, percentile: float = 100.0) -> tuple[Tensor, Tensor]:
    """The range that holds `percentile` per cent of the values above its low end, and of those below its high end."""
    flat = x.detach().float().flatten()
    if percentile >= 100.0:
        low, high = torch.aminmax(flat)
        return low, high
    rank = max(1, round(len(flat) * percentile / 100))
    return flat.kthvalue(len(flat) - rank + 1).values, flat.kthvalue(rank).values


class ActivationQuantizer(nn.Module):
    """Observes the range of the tensor that passes, and fake-quantizes it once it is active and knows one."""

    low: Tensor
    high: Tensor
    observed: Tensor

    def __init__(self, percentile: float = 100.0) -> None:
        super().__init__()
        self.calibrating = False
        self.active = False
        self.percentile = percentile
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
        return fake_quantize(x, scale, zero_point, ACTIVATION_LOWEST, ACTIVATION_HIGHEST)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the range, two tensors of shape ()."""
        return asymmetric_grid(self.low, self.high)

    def restart(self) -> None:
        """Forget the range and calibrate: watch what passes until `calibrating` is set back."""
        self.calibrating = True
        for tensor in (self.low, self.high, self.observed):
            tensor.zero_()

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = value_range(x, self.percentile)
        share = MOMENTUM if self.observed else 1.0
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self.observed += 1

    @torch.no_grad()
    def _calibrate(self, x: Tensor) -> None:
        low, high = value_range(x, self.percentile)
        self.observed += 1
        if self.percentile < 100.0:
            self.low += (low - self.low) / self.observed
            self.high += (high - self.high) / self.observed
        else:
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))


class Quantizer(nn.Module):
    """Rounds a tensor to unsigned 8-bit integers and gives the real numbers that they stand for."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Return x of any shape, on the grid."""
        grid = (self.scale, self.zero_point, ACTIVATION_LOWEST, ACTIVATION_HIGHEST, torch.uint8)
        integers = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
        found: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(integers, *grid)
        return found

    def extra_repr(self) -> str:
        """The grid."""
        return f"scale={self.scale:.6g}, zero_point={self.zero_point}"
