"""Binary weights: signs, with one scale for each output channel.

    w' = a sign(w),     a = mean |w|        the best a for sum (w - w')^2

Only weights are binary here: activations stay real, so no multiplication becomes an XNOR. In training the gradient is
that of the formula, with sign'(w) taken as 1[|w| <= 1]:

    dL/dw_i = a g_i 1[|w_i| <= 1] + sign(w_i) / n  sum over j of g_j sign(w_j)

Source: Rastegari et al. 2016, XNOR-Net, sec. 3.1 (Binary-Weight-Networks), eq. 6. A bit has no zero, so weights of
which some are removed stay real; while others are removed in the same training, zeros count for nothing. Ranges: one
bit a weight. Cost: a few passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_codes.coding import Coding
from compress_codes.training import Coder, straight_through


def signs(weight: Tensor) -> Tensor:
    """1 where a weight is not negative, else -1."""
    return torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)


def mean_size(rows: Tensor) -> Tensor:
    """The mean magnitude of each row (rows, entries), over what is not zero, (rows, 1)."""
    size = rows.abs()
    return size.sum(1, keepdim=True) / (size > 0).sum(1, keepdim=True).clamp(min=1)


class BinaryCoder(Coder):
    """Signs, with a scale for each row."""

    def coding(self, weight: Tensor) -> Coding:
        """The signs of a weight as bits."""
        layout = self.rows(weight)
        rows = layout.split(weight)
        return Coding(layout, 1, (rows >= 0).to(torch.uint8), mean_size(rows).squeeze(1))

    def coded(self, weight: Tensor) -> Tensor:
        """Signs and scales, with the gradients of both."""
        layout = self.rows(weight)
        rows = layout.split(weight)
        kept = rows.detach()
        passed = straight_through(rows, signs(kept) * (kept != 0), kept.abs() <= 1)
        return layout.joined(passed * mean_size(rows))

    def refuses(self, weight: Tensor) -> str:
        """A weight with zeros, which bits do not have."""
        zeros = int((weight == 0).sum())
        return f"bits have no zero, and {zeros} of its {weight.numel()} weights are zero" if zeros else ""
