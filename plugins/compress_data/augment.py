"""Training on pictures that are never twice the same: `warping.py` has the equations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from compress_core.errors import DataError
from compress_core.parts import Change, TrainingTechnique

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import nn

    from compress_core.data import Batch
    from compress_core.run import Run


class Augment(TrainingTechnique):
    """Turn, move, scale and shear every training picture a little, anew each time it is seen.

    The network, and a teacher beside it, see the same picture; validation and test pictures stay as they are. What is
    drawn follows from the recipe's seed.
    """

    name = "augment"
    example: ClassVar[Mapping[str, Any]] = {"turn": 10.0, "shift": 0.1}
    needs_epochs = True

    turn: float = Field(default=0.0, ge=0, le=180)
    """The largest angle in degrees by which a picture is turned, either way."""
    shift: float = Field(default=0.0, ge=0, le=1)
    """The largest share of the height and of the width by which it is moved."""
    scale: float = Field(default=0.0, ge=0, le=4)
    """It becomes at most 1 + `scale` times as large, and at least 1 / (1 + `scale`) times."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """The largest angle in degrees by which its upright lines are tilted."""
    until: float = Field(default=1.0, gt=0, le=1)
    """Share of the training after which pictures are left as they are."""
    column: str = "image"
    """The column of the pictures, (examples, channels, height, width), of real numbers."""

    @model_validator(mode="after")
    def _does_something(self) -> Augment:
        if not (self.turn or self.shift or self.scale or self.shear):
            raise ValueError("nothing changes a picture: give `turn`, `shift`, `scale` or `shear`")
        return self

    @property
    def changes(self) -> frozenset[Change]:
        """Nothing by itself but the training."""
        return frozenset({Change.TRAINING})

    def begin(self, model: nn.Module, run: Run) -> nn.Module:
        """Make the source of chance.

        Raises:
            DataError: the column is not there, or holds no pictures.
        """
        from compress_data.warping import Chance

        pictures = run.splits.train.column(self.column)
        if pictures.ndim != 4 or not pictures.is_floating_point():
            kind = str(pictures.dtype).removeprefix("torch.")
            raise DataError(
                f"{self.column!r} has examples of shape {tuple(pictures.shape[1:])} in {kind}, which are no pictures",
                where="column",
                mend="name a column of shape (channels, height, width) of real numbers",
            )
        changed = [name for name in ("turn", "shift", "scale", "shear") if getattr(self, name)]
        most = ", ".join(f"{name} {getattr(self, name):g}" for name in changed)
        run.say(f"augment: every training picture is changed at random, at most {most}")
        return Chance(run.seed)

    def before_forward(self, batch: Batch, state: nn.Module | None, progress: float, run: Run) -> Batch:
        """The examples with pictures that are changed at random."""
        from compress_data.warping import Chance, Most, maps, warped

        if progress >= self.until:
            return batch
        assert isinstance(state, Chance)
        pictures = batch[self.column]
        most = Most(turn=self.turn, shift=self.shift, scale=self.scale, shear=self.shear)
        affine = maps(len(pictures), most, pictures.shape[3] / pictures.shape[2], state.generator)
        return {**batch, self.column: warped(pictures, affine)}
