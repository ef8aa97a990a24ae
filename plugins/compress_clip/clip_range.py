"""`clip-range`: weights are held within a range that integers fit well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core.errors import ModelError
from compress_core.parts import Technique
from compress_core.selecting import matching

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.run import Run
    from compress_core.weights import Place


class ClipRange(Technique):
    """Hold every weight within [-c, c] before quantization, so that no grid is stretched by a few outliers.

    c is a percentile of the magnitudes, or the bound at which integers of `bits` bits are nearest to the weights: the
    squared error is measured, or follows from the distribution that the weights are taken to have (ACIQ). Zeros
    stay. A later training may let weights grow beyond c again: use it after the training, or right with `quantize`.
    """

    name = "clip-range"
    example: ClassVar[dict[str, Any]] = {"bits": 4}

    bits: int | None = Field(default=None, ge=2, le=8)
    """The width of the integers that the bound is best for. Give this or `percentile`."""
    percentile: float | None = Field(default=None, ge=50, lt=100)
    """The share of the magnitudes, in per cent, that the range holds, as in 99.9."""
    method: Literal["measured", "laplace", "gauss"] = "measured"
    """How the best bound for `bits` is found: the least squared error of all tried bounds, or the closed form for
    weights of a Laplace or a normal distribution."""
    granularity: Literal["channel", "tensor"] = "channel"
    """Whether each output channel has a bound of its own, as its integers have a scale, or a tensor has one."""
    skip: tuple[str, ...] = ()
    """Paths of modules that stay as they are, with all they hold; `*` stands for anything, as in `encoder.*`."""

    @model_validator(mode="after")
    def _one_way(self) -> ClipRange:
        if (self.bits is None) == (self.percentile is None):
            raise ValueError("give `bits` or `percentile`, one of the two, such as `bits: 4`")
        if self.bits is None and self.method != "measured":
            raise ValueError("`method` finds a bound for `bits`: leave it out, or give `bits` instead of `percentile`")
        return self

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Hold the weights within their ranges, in place.

        Raises:
            ModelError: the network has no weights, or a pattern in `skip` matches no module.
        """
        from compress_core.weights import weights

        places = weights(model, matching(model, self.skip).values())
        if not places:
            mend = "shorten `skip`" if self.skip else "clip before the step that makes integers of the weights"
            raise ModelError("the network has no weights whose range could be clipped", mend=mend)
        held = [self._hold(place) for place in places]
        total = sum(place.parameter.numel() for place in places)
        if changed := sum(held):
            tensors = sum(count > 0 for count in held)
            run.say(f"clip-range: {changed} of {total} weights in {tensors} tensors were beyond their bound")
        else:
            run.say(f"clip-range: all {total} weights lie within their bounds: nothing changed")
        return model

    def _hold(self, place: Place) -> int:
        """Hold one weight within its range, in place, and count what was beyond."""
        import torch

        from compress_clip.saturation import saturate

        weight = place.parameter.detach()
        axis = _output_axis(place)
        rows = weight.movedim(axis, 0).flatten(1) if self.granularity == "channel" else weight.reshape(1, -1)
        clipped = saturate(rows, self._bounds(rows.float()).to(rows.dtype))
        changed = int((clipped != rows).sum())
        shape = weight.movedim(axis, 0).shape
        back = clipped.reshape(shape).movedim(0, axis) if self.granularity == "channel" else clipped.reshape_as(weight)
        with torch.no_grad():
            place.parameter.copy_(back)
        return changed

    def _bounds(self, rows: Tensor) -> Tensor:
        """The bound of each row (rows, entries), (rows,)."""
        from compress_clip import saturation

        if self.bits is None:
            assert self.percentile is not None
            return saturation.percentile_bound(rows, self.percentile)
        step = 1 / saturation.levels(self.bits)
        match self.method:
            case "measured":
                return saturation.measured_bound(rows, self.bits)
            case "laplace":
                return saturation.mean_magnitude(rows) * saturation.laplace_bound(1.0, step)
            case "gauss":
                return saturation.root_mean_square(rows) * saturation.gauss_bound(1.0, step)


def _output_axis(place: Place) -> int:
    """The axis of a weight on which the output channels of its layer lie."""
    from compress_core.channels.cutting import CannotCut, axes

    try:
        return axes(place.module, "out").get(place.tensor, 0)
    except CannotCut:
        return 0
