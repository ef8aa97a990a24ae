"""Factorization: a layer whose weight is nearly of low rank becomes a chain of smaller layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.errors import ModelError
from compress_core.parts import Change, Technique

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run
    from compress_factorize.pieces import Candidates, Factors


class Factorize(Technique):
    """Replace linear layers and convolutions by chains of smaller ones: W ~ (U sqrt(S)) (sqrt(S) V^T).

    A layer is replaced only where the chain needs fewer parameters and fewer multiplications; the others stay
    and are named, and the relative error of every replaced weight is told. Train afterwards, or distil: the
    factors start near the layer and learn what the truncation lost.
    """

    name = "factorize"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.6}

    energy: float | None = Field(default=None, gt=0, le=1)
    """The share of a weight's squared norm that must stay; its relative error is at most sqrt(1 - energy)."""
    ratio: float | None = Field(default=None, gt=0, lt=1)
    """The share of the parameters of all these layers that may stay, spent where they keep the most. Give this or
    `energy`."""
    method: Literal["spatial", "tucker", "channel", "input", "cp", "separable", "group"] = "spatial"
    """How a convolution is split: into k x 1 and 1 x k; into 1x1, k x k and 1x1; into k x k and 1x1; into 1x1 and
    k x k; into 1x1, k x 1 and 1 x k for each channel by itself, and 1x1; into k x k for each channel by itself and 1x1;
    into k x k in groups and 1x1."""
    multiple: int = Field(default=1, ge=1)
    """Ranks are multiples of this; integer kernels like 16."""
    recalibrate: bool = True
    """Whether batch normalizations measure their statistics again, on a few batches without labels."""
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
            ModelError: a pattern in `skip` matches no module, a weight is not finite, or `ratio` is out of reach.
        """
        from compress_core.modes import leave_fused_paths
        from compress_core.selecting import matching
        from compress_factorize.attention import open_attention
        from compress_factorize.layers import find_layers, put
        from compress_factorize.methods import method_of
        from compress_factorize.pieces import worthwhile
        from compress_factorize.recalibration import recalibrate

        before = sum(parameter.numel() for parameter in model.parameters())
        attention = open_attention(model)
        found = find_layers(model, run, matching(model, self.skip))
        methods = {path: method_of(layer, self.method) for path, layer in found.layers.items()}
        worth = {
            path: worthwhile(methods[path], layer, found.areas[path], self.multiple)
            for path, layer in found.layers.items()
        }
        chosen = self._choose(worth, {path: layer.weight.numel() for path, layer in found.layers.items()})
        replaced: dict[str, Factors] = {}
        for path, layer in found.layers.items():
            if path in chosen:
                replaced[path] = methods[path].factors(layer, worth[path].ranks[chosen[path]].tolist())
                model = put(model, path, replaced[path].pieces)
            else:
                found.leave(path, "needs its parameters" if len(worth[path]) and self.ratio else "would save nothing")
        attention.close(model)
        leave_fused_paths(model, replaced)
        if replaced and self.recalibrate:
            recalibrate(model, run)
        run.say(_told(replaced, found.left, before, sum(parameter.numel() for parameter in model.parameters())))
        return model

    def _choose(self, worth: Mapping[str, Candidates], full: Mapping[str, int]) -> dict[str, int]:
        """The candidate of each layer that is replaced."""
        from compress_factorize.budget import spend

        if self.energy is not None:
            entries = {path: candidates.cheapest(self.energy) for path, candidates in worth.items()}
            return {path: entry for path, entry in entries.items() if entry is not None}
        assert self.ratio is not None
        chosen = spend(self.ratio * sum(full.values()), worth, full)
        if chosen is None:
            least = sum(int(found.parameters[0]) if len(found) else full[path] for path, found in worth.items())
            raise ModelError(
                f"these layers cannot get by with {self.ratio:.3g} of their parameters; "
                f"the least is {least / sum(full.values()):.3g}",
                mend="give a larger `ratio`, or skip fewer layers",
            )
        return chosen


def _told(replaced: Mapping[str, Factors], left: Mapping[str, list[str]], before: int, after: int) -> str:
    """One line: what was replaced, with the relative error of each weight, and what was left and why."""
    reasons = "; ".join(f"{reason}: {', '.join(paths)}" for reason, paths in sorted(left.items()))
    if not replaced:
        return f"factorize: nothing changed ({reasons or 'there is no layer to factorize'})"
    done = ", ".join(
        f"{path} (rank {'/'.join(map(str, factors.ranks))}, error {factors.error:.1%})"
        for path, factors in replaced.items()
    )
    layers = "1 layer" if len(replaced) == 1 else f"{len(replaced)} layers"
    rest = f"; left: {reasons}" if reasons else ""
    return f"factorize: {layers} replaced, {before:,} to {after:,} parameters: {done}{rest}"


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Factorize]
