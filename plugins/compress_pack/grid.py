"""`grid`: few different weights, so that each costs few bits in a packed file."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compress_core.parts import TrainingTechnique
from compress_core.selecting import matching

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import nn

    from compress_core.run import Run
    from compress_pack.latent import Latent


class Grid(TrainingTechnique):
    """Put the weights of each layer on a few evenly spaced levels, and learn the step while the network trains.

    w becomes s k with a whole number k, from -`levels` to `levels`, and a step s for each tensor. The numbers stay
    real: any layer may follow, be exported and trained, and nothing gets faster. In `export: {format: packed}` a weight
    then costs its code, and most codes are zero. What an earlier step has removed stays zero. In a step that trains,
    gradients pass the rounding straight through, and the step is learned (LSQ); alone, it has the least squared error.
    """

    name = "grid"
    example: ClassVar[Mapping[str, Any]] = {"levels": 4}

    levels: int = Field(default=4, ge=1, le=2000)
    """Levels on either side of zero, for weights. 1 makes them ternary."""
    bias_levels: int | None = Field(default=None, ge=1, le=2000)
    """The same for the biases of these layers; unless given, biases stay as they are."""
    skip: tuple[str, ...] = ()
    """Paths of modules that stay as they are, with all they hold; `*` stands for anything, as in `encoder.*`."""

    def begin(self, model: nn.Module, run: Run) -> nn.Module:
        """Round everything once, and keep what it was.

        Raises:
            ModelError: a pattern in `skip` matches no module.
        """
        from compress_core.weights import weights
        from compress_pack.latent import Latent

        places = weights(model, matching(model, self.skip).values())
        levels = {place.name: self.levels for place in places}
        if self.bias_levels is not None:
            for place in places:
                name = f"{place.path}.bias".lstrip(".")
                if place.module._parameters.get("bias") is not None:
                    levels[name] = self.bias_levels
        state = Latent(model, levels).to(run.device)
        state.round(model)
        return state

    def after_backward(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Turn the gradients of the levels into those of the weights and steps; the update is of the weights."""
        _latent(state).straight_through(model)

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Keep the updated weights and round them."""
        latent = _latent(state)
        latent.take(model)
        latent.round(model)

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Say how many different numbers are left."""
        latent = _latent(state)
        if not latent.levels:
            run.say("grid: the network has no weights: nothing changed")
            return model
        found = [model.get_parameter(name).detach() for name in latent.levels]
        total, left = sum(one.numel() for one in found), sum(int(one.count_nonzero()) for one in found)
        most = 2 * max(latent.levels.values()) + 1
        run.say(
            f"grid: {total} numbers in {len(found)} tensors lie on at most {most} levels, "
            f"{total - left} of them on zero"
        )
        return model


def _latent(state: nn.Module | None) -> Latent:
    from compress_pack.latent import Latent

    assert isinstance(state, Latent)
    return state
