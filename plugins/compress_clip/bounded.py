"""PACT: a rectifier whose upper bound is learned.

    y = clamp(x, 0, alpha) = (|x| - |x - alpha| + alpha) / 2

    dy/dx = 1 if 0 < x < alpha else 0          dy/dalpha = 1 if x > alpha else 0

A loss that rises when a large value is cut off pulls alpha up, the term (l2 / 2) * sum alpha^2 pulls it down. A small
alpha spends the integers of a quantized activation on what the network needs.

Source: Choi et al. 2018, PACT: Parameterized clipping activation for quantized neural networks, eq. 1 and sec. 3 (the
regularizer on alpha). Cost: one more comparison per activation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST = 1e-6
"""The smallest bound; at 0 nothing would pass, and nothing would be learned."""


class BoundedReLU(nn.ReLU):
    """clamp(x, 0, bound), the bound a parameter; a ReLU for whoever looks for rectifiers."""

    def __init__(self, bound: float = 6.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        self.bound = nn.Parameter(torch.tensor(float(bound)))

    def forward(self, input: Tensor) -> Tensor:
        """The input of any shape, held within 0 and the bound."""
        bound = self.bound.to(input.dtype)
        clamp = torch.clamp_ if self.inplace else torch.clamp
        return clamp(input, torch.zeros_like(bound), bound)

    def arguments(self) -> dict[str, bool]:
        """Whether it works in place; the bound is among the tensors."""
        return {"inplace": True} if self.inplace else {}

    def extra_repr(self) -> str:
        """The bound."""
        return f"bound={self.bound.item():.4g}" + (", inplace=True" if self.inplace else "")


def bounded(model: nn.Module) -> dict[str, BoundedReLU]:
    """The bounded rectifiers of a network by path, each once."""
    return {path: module for path, module in model.named_modules() if isinstance(module, BoundedReLU)}


def l2_of_bounds(modules: Iterable[BoundedReLU], factor: float) -> Tensor:
    """Half the factor times the sum of the squared bounds, a scalar."""
    return factor / 2 * torch.stack([module.bound for module in modules]).square().sum()


def show_rectifiers(model: nn.Module, skipped: Collection[int]) -> None:
    """Make the function that torch's transformer layers call between their linear layers a module, in place.

    Args:
        model: the network.
        skipped: the `id` of each module that stays as it is.
    """
    for module in model.modules():
        known = isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        if known and module.activation is F.relu and id(module) not in skipped:
            module.activation = nn.ReLU().train(module.training)


def replace_modules(model: nn.Module, others: dict[int, nn.Module]) -> None:
    """Put other modules in the places of those whose `id` is given, all places of each, in place."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in others:
                parent._modules[name] = others[id(child)]
