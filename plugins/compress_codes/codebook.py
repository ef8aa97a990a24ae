"""`codebook`: weights share a few values, and are kept as their places in a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compress_codes.technique import Codes, too_small
from compress_core.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from compress_codes.placing import Candidate, MakeCoder
    from compress_codes.training import Coder
    from compress_core.run import Run


class Codebook(Codes):
    """Let weights share a few values, found by k-means, and keep the place of each in a table (Deep Compression).

    In a step that trains, each weight stays in its cluster and the values learn. Weights that were clipped or pruned
    stay exactly zero.
    """

    name = "codebook"
    example: ClassVar[Mapping[str, Any]] = {"clusters": 16}

    clusters: int = Field(default=16, ge=2, le=256)
    """How many values there are. A code has as many bits as count them."""
    scope: Literal["layer", "network"] = "layer"
    """Whether each weight tensor has values of its own, or the whole network shares them."""
    init: Literal["linear", "density"] = "linear"
    """Where k-means begins: evenly over the range, which keeps large weights exact, or at even quantiles."""

    @property
    def bits(self) -> int:
        """The width of a code."""
        return (self.clusters - 1).bit_length()

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Give every weight a codebook, in place.

        Raises:
            ModelError: there are more clusters than weights, a pattern in `skip` matches no module, or a weight is not
                finite.
        """
        from compress_core.weights import weights

        largest = max((place.parameter.numel() for place in weights(model)), default=0)
        if 0 < largest < self.clusters:
            raise ModelError(
                f"there are {self.clusters} clusters, and no weight has more than {largest} entries",
                where="clusters",
                mend=f"give fewer than {largest}",
            )
        return super().prepare(model, run)

    def maker(self, run: Run) -> MakeCoder:
        """A codebook for each weight, or one for all."""
        from compress_codes.kmeans import Book, BookCoder
        from compress_codes.packing import packed_bytes

        shared = Book(self.clusters, self.init) if self.scope == "network" else None
        table = 0 if shared else 4 * self.clusters

        def make(place: Candidate) -> Coder | str:
            size = packed_bytes(place.weight.numel(), self.bits) + table
            book = shared or Book(self.clusters, self.init)
            return too_small(size, place) or BookCoder(book, self.bits, place.axis)

        return make
