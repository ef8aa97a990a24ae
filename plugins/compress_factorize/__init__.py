"""Factorization: a layer whose weight is nearly of low rank becomes a chain of smaller layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.parts import Change, Technique

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run


class Factorize(Technique):
    """Replace linear layers and convolutions by chains of smaller ones: W ~ (U sqrt(S)) (sqrt(S) V^T).

    A layer is replaced only where the chain needs fewer parameters and fewer multiplications; the others stay
    and are named. The relative error of every replaced weight is told. Train afterwards, or distil: the
    factors start near the layer and learn what the truncation lost.
    """

    name = "factorize"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.6}

    energy: float | None = Field(default=None, gt=0, le=1)
    """The share of a weight's squared norm that must stay; its relative error is at most sqrt(1 - energy)."""
    ratio: float | None = Field(default=None, gt=0, lt=1)
    """The share of a layer's parameters that may stay. Give this or `energy`."""
    method: Literal["tucker", "spatial", "channel"] = "tucker"
    """How a convolution is split: into 1x1, k x k and 1x1, into k x 1 and 1 x k, or into k x k and 1x1."""
    multiple: int = Field(default=1, ge=1)
    """Ranks are multiples of this; integer kernels like 16."""
    skip: tuple[str, ...] = ()
    """Paths of modules that stay as they are, with all they hold; `*` stands for anything, as in `encoder.*`."""

    @model_validator(mode="after")
    def _one_way(self) -> Factorize:
        if (self.energy is None) == (self.ratio is None):
            raise ValueError("give `energy` or `ratio`, one of the two, such as `energy: 0.9`")
        return self

    @property
    def changes(self) -> frozenset[Change]:
        """Layers and their weights."""
        return frozenset({Change.ARCHITECTURE, Change.WEIGHTS})

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Replace the layers that are worth it.

        Raises:
            ModelError: a pattern in `skip` matches no module, or a weight is not finite.
        """
        from compress_core.selecting import matching
        from compress_factorize.layers import replace_layers
        from compress_factorize.pieces import Wish

        wish = Wish(self.energy, self.ratio, self.method, self.multiple)
        skipped = matching(model, self.skip)
        model, told = replace_layers(model, run, wish, skipped)
        run.say(f"factorize: {told}")
        return model


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Factorize]
