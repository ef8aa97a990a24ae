"""`weight-only`: weights are integers of few bits, and the network computes with real numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_codes.technique import Codes, too_small

if TYPE_CHECKING:
    from compress_codes.placing import Candidate, MakeCoder
    from compress_codes.training import Coder
    from compress_core.run import Run


class WeightOnly(Codes):
    """Keep weights as integers of 2 to 8 bits, with a scale for each tensor, channel or group of inputs.

    Activations stay real, so no data are needed and nothing gets faster: the file and the memory get smaller. In a
    step that trains, the network learns with the rounding.
    """

    name = "weight-only"
    example: ClassVar[Mapping[str, Any]] = {"bits": 4, "granularity": "group", "group": 16}

    bits: int = Field(default=8, ge=2, le=8)
    """The width of the integers."""
    granularity: Literal["tensor", "channel", "group"] = "channel"
    """What has a scale of its own: a weight, each of its output channels, or each `group` of a channel's inputs."""
    group: int = Field(default=64, ge=2)
    """How many inputs share a scale, with `granularity: group`. Where they do not divide a channel's inputs, the
    whole channel has one."""
    symmetric: bool = True
    """Whether grids lie around zero. Others have a zero point each, a byte, and use all codes where weights lie to
    one side."""
    range: Literal["max", "mse"] = "max"
    """Whether a grid spans the largest weights, or so much that the squared error is least. `mse` is better at few
    bits; in a step that trains it costs 48 passes over the weights at each update."""

    @model_validator(mode="after")
    def _meaningful(self) -> WeightOnly:
        if self.granularity != "group" and "group" in self.model_fields_set:
            raise ValueError("`group` means nothing without `granularity: group`")
        return self

    def maker(self, run: Run) -> MakeCoder:
        """Integers of few bits, unless they would take more bytes than the weight."""
        from compress_codes.coding import divides, rows_of
        from compress_codes.uniform import UniformCoder, uniform_bytes

        def make(place: Candidate) -> Coder | str:
            shape = tuple(place.weight.shape)
            rows = rows_of(shape, place.axis, self.granularity, self.group)
            size = uniform_bytes(place.weight.numel(), self.bits, rows.count, symmetric=self.symmetric)
            if reason := too_small(size, place):
                return reason
            if self.granularity == "group" and not divides(shape, place.axis, self.group):
                entries = place.weight.numel() // shape[place.axis]
                run.say(f"{self.name}: {place.name} has a scale per channel: {self.group} does not divide {entries}")
            return UniformCoder(
                self.bits,
                symmetric=self.symmetric,
                range=self.range,
                axis=place.axis,
                granularity=self.granularity,
                group=self.group,
            )

        return make
