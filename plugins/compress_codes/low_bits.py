"""`ternary`, `binary` and `power-of-two`: weights of so few values that their codes have one to six bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_codes.technique import Codes, too_small

if TYPE_CHECKING:
    from compress_codes.placing import Candidate, MakeCoder
    from compress_codes.training import Coder
    from compress_core.parts import TrainingPlan
    from compress_core.run import Run


class Ternary(Codes):
    """Keep weights as one of two numbers, or zero, in two bits each.

    Without training, the signs of the larger weights with the scale of least error (TWN). In a step that trains, the
    network learns with them; `ttq` learns the two numbers too, and is meant for training. The first and the last layer
    suffer most: name them in `skip`.
    """

    name = "ternary"
    example: ClassVar[Mapping[str, Any]] = {"method": "twn", "granularity": "channel"}

    method: Literal["twn", "ttq"] = "twn"
    """Whether both numbers are one computed scale, or are learned apart."""
    granularity: Literal["tensor", "channel"] = "tensor"
    """Whether a weight or each of its output channels has a scale; `ttq` has two numbers for each weight."""

    @model_validator(mode="after")
    def _meaningful(self) -> Ternary:
        if self.method == "ttq" and self.granularity != "tensor":
            raise ValueError("`ttq` learns two numbers for each weight: leave `granularity` out")
        return self

    def maker(self, run: Run) -> MakeCoder:
        """TWN or TTQ."""
        return self._coder

    def _coder(self, place: Candidate) -> Coder | str:
        from compress_codes.coding import rows_of
        from compress_codes.packing import packed_bytes
        from compress_codes.ternary import BITS, TernaryCoder, TrainedTernaryCoder

        rows = rows_of(tuple(place.weight.shape), place.axis, self.granularity).count
        extra = 12 if self.method == "ttq" else 4 * rows
        if reason := too_small(packed_bytes(place.weight.numel(), BITS) + extra, place):
            return reason
        if self.method == "ttq":
            return TrainedTernaryCoder(place.axis)
        return TernaryCoder(place.axis, self.granularity)


class Binary(Codes):
    """Keep the signs of weights, a bit each, with a scale for each output channel (the binary weights of XNOR-Net).

    Activations stay real. It needs a step that trains; the first and the last layer suffer most: name them in `skip`.
    A bit has no zero, so weights that were clipped or pruned stay real.
    """

    name = "binary"
    example: ClassVar[Mapping[str, Any]] = {"skip": []}

    def maker(self, run: Run) -> MakeCoder:
        """Signs and scales, unless a weight has zeros."""
        return self._coder

    def _coder(self, place: Candidate) -> Coder | str:
        from compress_codes.binary import BinaryCoder
        from compress_codes.packing import packed_bytes

        channels = place.weight.shape[place.axis]
        if reason := too_small(packed_bytes(place.weight.numel(), 1) + 4 * channels, place):
            return reason
        coder = BinaryCoder(place.axis, "channel")
        return coder.refuses(place.weight.detach()) or coder


class PowerOfTwo(Codes):
    """Keep weights as powers of two, or zero, in codes of 2 to 6 bits.

    In a step that trains, all weights are rounded at every update, or, with `schedule: incremental`, fixed in four
    portions, the largest first, while the others make up for it (INQ).
    """

    name = "power-of-two"
    example: ClassVar[Mapping[str, Any]] = {"bits": 4}

    bits: int = Field(default=5, ge=2, le=6)
    """The width of a code: 2^bits - 1 levels, half of them negative, and zero."""
    schedule: Literal["at-once", "incremental"] = "at-once"
    """Whether all weights are rounded from the start, or more of them in each quarter of the training."""

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Choose no epoch before all weights are rounded."""
        found = super().plan(plan, run)
        if self.schedule == "at-once":
            return found
        return replace(found, select_from=max(found.select_from, self.delay + 0.75 * (1 - self.delay)))

    def maker(self, run: Run) -> MakeCoder:
        """Powers of two."""
        return self._coder

    def _coder(self, place: Candidate) -> Coder | str:
        from compress_codes.packing import packed_bytes
        from compress_codes.powers import PowerCoder

        table = 4 * ((1 << self.bits) - 1)
        if reason := too_small(packed_bytes(place.weight.numel(), self.bits) + table, place):
            return reason
        return PowerCoder(self.bits, incremental=self.schedule == "incremental", axis=place.axis)
