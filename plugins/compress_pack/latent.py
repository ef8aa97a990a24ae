"""The weights behind the levels while a network trains: `levels.py` has the equations.

The network holds the levels wherever it computes, is judged or is kept. Only between a backward pass and the update
does it hold the weights behind them, so that the optimizer moves those.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress_core.masks import masked_tensors
from compress_pack.levels import codes, least_error_step, on_grid, slopes


class Latent(nn.Module):
    """The weights of a network before they were rounded, and the logarithms of their steps."""

    def __init__(self, model: nn.Module, levels: Mapping[str, int]) -> None:
        """Begin with the network's weights.

        Args:
            model: the network.
            levels: how many levels each parameter has on either side of zero, by its name.
        """
        super().__init__()
        self.levels = dict(levels)
        held = set(masked_tensors(model))
        steps = []
        for index, (name, count) in enumerate(self.levels.items()):
            weight = model.get_parameter(name).detach()
            self.register_buffer(f"weight_{index}", weight.clone())
            self.register_buffer(f"gone_{index}", weight == 0 if name in held else None)
            steps.append(least_error_step(weight, count).log())
        self.log_steps = nn.Parameter(torch.stack(steps) if steps else torch.zeros(0))

    def weight(self, index: int) -> Tensor:
        """The weight behind the levels."""
        return self.get_buffer(f"weight_{index}")

    @torch.no_grad()
    def round(self, model: nn.Module) -> None:
        """Give the network the levels."""
        steps = self.log_steps.exp()
        for index, (name, count) in enumerate(self.levels.items()):
            model.get_parameter(name).copy_(on_grid(self.weight(index), steps[index], count))

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Keep the weights of the network as those behind the levels."""
        for index, name in enumerate(self.levels):
            self.weight(index).copy_(model.get_parameter(name))

    @torch.no_grad()
    def straight_through(self, model: nn.Module) -> None:
        """Give the network the weights behind its levels, with their gradients, and the steps theirs.

        What another technique has set to zero since they were rounded is zero behind its level too.
        """
        steps = self.log_steps.exp()
        gradient = torch.zeros_like(self.log_steps)
        for index, (name, count) in enumerate(self.levels.items()):
            parameter, weight, gone = model.get_parameter(name), self.weight(index), self._buffers[f"gone_{index}"]
            weight[(parameter == 0) & (codes(weight, steps[index], count) != 0)] = 0
            if gone is not None:
                weight[gone] = 0
            parameter.copy_(weight)
            if parameter.grad is not None:
                parameter.grad, gradient[index] = slopes(weight, parameter.grad, steps[index], count)
        self.log_steps.grad = gradient
