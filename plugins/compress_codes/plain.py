"""The plain form: one scale for the whole network.

    q = round(w alpha),    alpha = (2^(b-1) - 1) / max |w| over all weights of the network,    w' = q / alpha

The largest weight of any layer decides how fine the grid of every layer is, which is why finer scales exist; this
form is here so that its cost can be seen beside theirs. In a step that trains, alpha is that of the weights with which
the training with codes begins, and what grows beyond the grid is cut off.

Source: the symmetric case of Krishnamoorthi 2018, Quantizing deep convolutional networks for efficient inference,
sec. 2.2, with all tensors as one. Ranges: b from 2 to 8. Cost: one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress_codes.coding import Coding
from compress_codes.training import Coder, straight_through
from compress_codes.uniform import Grid, grid_of


class Alpha(nn.Module):
    """The scale that all weights share.

    Args:
        bits: the width of the integers.
    """

    scale: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.ones(1))
        """1 / alpha, (1,)."""

    @torch.no_grad()
    def fit(self, weights: list[Tensor]) -> None:
        """Take the scale from the largest of all weights."""
        largest = torch.stack([weight.abs().max() for weight in weights]).max()
        self.scale.copy_(grid_of(largest.reshape(1, 1), self.bits).scale)


class PlainCoder(Coder):
    """Integers on the grid that the whole network has.

    Args:
        alpha: the grid's scale.
        axis: on which the output channels of the weight lie.
    """

    def __init__(self, alpha: Alpha, axis: int = 0) -> None:
        super().__init__(axis, "tensor")
        self.alpha = alpha

    @property
    def book(self) -> nn.Module:
        """The scale."""
        return self.alpha

    @torch.no_grad()
    def settle(self, weights: list[nn.Parameter]) -> None:
        """Take the scale from all weights."""
        self.alpha.fit([weight.detach() for weight in weights])

    def _grid(self) -> Grid:
        return Grid(self.alpha.bits, self.alpha.scale, None)

    def coding(self, weight: Tensor) -> Coding:
        """The integers of a weight."""
        layout = self.rows(weight)
        return self._grid().coding(layout.split(weight), layout)

    def coded(self, weight: Tensor) -> Tensor:
        """The weight on the grid, with the straight-through gradient where the grid does not cut it off."""
        layout, grid = self.rows(weight), self._grid()
        codes = grid.codes(layout.split(weight.detach()))
        inside = layout.joined((codes >= grid.lowest) & (codes <= grid.highest))
        return straight_through(weight, self.coding(weight.detach()).weight(), inside)
