"""Weights that stay removed: which tensors of a network are masked, and what keeps their zeros.

A technique that removes single weights calls `hold_zeros(module, "weight")`. The mark travels with the
module through copies and artifacts; every later training multiplies the gradient step away again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

MARK = "_compress_masked"


def hold_zeros(module: nn.Module, tensor: str) -> None:
    """Mark `module.tensor`: its zeros are removed weights and stay zero in every later training."""
    held = set(getattr(module, MARK, ()))
    module.__dict__[MARK] = tuple(sorted({*held, tensor}))


def masked_tensors(model: nn.Module) -> list[str]:
    """The qualified names of the masked tensors, sorted."""
    return sorted(
        f"{path}.{tensor}" if path else tensor
        for path, module in model.named_modules()
        for tensor in module.__dict__.get(MARK, ())
    )


class HeldZeros:
    """The masks of one training: 1 where a masked tensor was not zero when the training began."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.masks = {name: model.get_parameter(name).detach() != 0 for name in names}

    def apply_to(self, model: nn.Module) -> None:
        """Set the removed weights back to zero."""
        for name, mask in self.masks.items():
            model.get_parameter(name).detach().mul_(mask)
