"""The number format of a training's passes: float32, or mixed precision.

Weights and their updates stay in float32. With `bfloat16` or `float16` the operations that can are computed in
that format; the loss is scaled up for `float16`, so that small gradients do not vanish, and the gradients are
scaled down again before anybody sees them.

Source: Micikevicius et al. 2018, Mixed Precision Training, sec. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """How one training computes on its device."""

    def __init__(self, name: str, device: str) -> None:
        self.kind = torch.device(device).type
        self.dtype = DTYPES[name]
        self.scaler = torch.amp.GradScaler(self.kind, enabled=self.dtype is torch.float16)

    def autocast(self) -> torch.autocast:
        """The context of the forward pass and the loss."""
        return torch.autocast(self.kind, self.dtype, enabled=self.dtype is not torch.float32)

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        """Compute the gradients, in their true size."""
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(optimizer)

    def update(self, optimizer: Optimizer) -> None:
        """Move the weights, unless a scaled gradient was no number, and forget the gradients."""
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
