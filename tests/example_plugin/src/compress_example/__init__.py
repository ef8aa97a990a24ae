"""N:M sparsity as a plugin for compress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from compress_core import Technique, hookimpl
from compress_core.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run


class Sparsify(Technique):
    """Of every `of` neighbouring weights, keep the `keep` largest; the others are zero, and stay zero."""

    name = "sparsify"
    example: ClassVar[Mapping[str, Any]] = {"keep": 2, "of": 4}

    keep: int = Field(default=2, ge=1)
    """How many weights of a group stay."""
    of: int = Field(default=4, ge=2)
    """How many weights make a group, along the inputs of a layer."""

    @model_validator(mode="after")
    def _some_go(self) -> Sparsify:
        if self.keep >= self.of:
            raise ValueError("`keep` must be smaller than `of`, as in `keep: 2, of: 4`")
        return self

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Sparsify every linear layer and convolution whose inputs fall into whole groups.

        Raises:
            ModelError: the network has no such layer.
        """
        import torch
        from torch import nn

        from compress_core.masks import hold_zeros
        from compress_example.pattern import keep_largest

        kinds = (nn.Linear, nn.Conv2d)
        layers = [module for module in model.modules() if isinstance(module, kinds)]
        fitting = [layer for layer in layers if layer.weight.shape[1] % self.of == 0]
        if not fitting:
            raise ModelError(
                f"no layer has a multiple of {self.of} inputs", mend="choose an `of` that divides the inputs of a layer"
            )
        gone = 0
        for layer in fitting:
            before = int(layer.weight.count_nonzero())
            with torch.no_grad():
                layer.weight.copy_(keep_largest(layer.weight, self.keep, self.of))
            hold_zeros(layer, "weight")
            gone += before - int(layer.weight.count_nonzero())
        left = f"{len(layers) - len(fitting)} of {len(layers)} layers do not fit"
        run.say(f"sparsify: {gone} weights went; {left}" if gone else f"sparsify: nothing changed; {left}")
        return model


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Sparsify]
