"""`round-weights`: integers with one scale for the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compress_codes.technique import Codes, too_small

if TYPE_CHECKING:
    from compress_codes.placing import Candidate, MakeCoder
    from compress_codes.training import Coder
    from compress_core.run import Run


class RoundWeights(Codes):
    """Round all weights of the network with one factor, q = round(w * alpha), and keep the integers.

    The plain form of quantization: the largest weight of any layer decides how coarse all others are rounded. It is
    there to be compared with; `weight-only` takes the same bytes and loses less.
    """

    name = "round-weights"
    example: ClassVar[Mapping[str, Any]] = {"bits": 8}

    bits: int = Field(default=8, ge=2, le=8)
    """The width of the integers."""

    def maker(self, run: Run) -> MakeCoder:
        """Integers with a factor that all weights share."""
        from compress_codes.packing import packed_bytes
        from compress_codes.plain import Alpha, PlainCoder

        alpha = Alpha(self.bits)

        def make(place: Candidate) -> Coder | str:
            size = packed_bytes(place.weight.numel(), self.bits)
            return too_small(size, place) or PlainCoder(alpha, place.axis)

        return make
