"""How many bits every weight and every edge gets.

    layer                      weight          what it reads
    the first and the last     outer           outer
    any other                  weights         activations

What a sum of branches reads and writes has 8 bits, as has what nothing but a sum or a pool reads: only the operands of
layers become narrow, as in the literature, where the residual stream is not rounded at all. A layer that reads such a
stream rounds it once more for itself.

Source: Esser et al. 2020, Learned Step Size Quantization, sec. 3 (8 bits for the first and the last layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from compress_quantize.affine import highest_activation
from compress_quantize.edges import Edges
from compress_quantize.observing import Observing
from compress_quantize.weight_grids import WeightGrid

BYTE = 8


@dataclass(frozen=True)
class Widths:
    """The bits of weights and activations, and of both at the first and the last layer."""

    weights: int = BYTE
    activations: int = BYTE
    outer: int = BYTE


@dataclass(frozen=True)
class Numbers:
    """What the numbers of a network become."""

    observing: Observing = field(default_factory=Observing)
    """How the range of an edge is found."""
    grid: WeightGrid = field(default_factory=WeightGrid)
    """How the steps of a weight are chosen."""
    widths: Widths = field(default_factory=Widths)
    learned: bool = False
    """Whether training learns the steps."""


class Grids:
    """The grids of one network.

    Args:
        numbers: what its numbers become.
        order: the paths of its layers, as an example reaches them.
        edges: where its quantizers go.
    """

    def __init__(self, numbers: Numbers, order: Sequence[str], edges: Edges) -> None:
        self.numbers, self.edges = numbers, edges
        self.outer = {order[0], order[-1]} if order else set()
        self.readers: dict[tuple[str, str], list[str]] = {}
        for path, source in edges.sources.items():
            self.readers.setdefault(source, []).append(path)

    def of_weight(self, path: str) -> WeightGrid:
        """The grid of a layer's weight."""
        widths = self.numbers.widths
        return replace(self.numbers.grid, bits=widths.outer if path in self.outer else widths.weights)

    def of_input(self, path: str) -> Observing:
        """The grid of what a layer reads by itself."""
        return self._observing(self._read_bits(path))

    def of_edge(self, container: str, node: str) -> Observing:
        """The grid of a value that several read, or that a sum reads or writes."""
        readers = self.readers.get((container, node), [])
        if (container, node) in self.edges.sums or not readers:
            return self._observing(BYTE)
        return self._observing(max(map(self._read_bits, readers)))

    def source_of(self, path: str) -> tuple[str, str] | None:
        """The container and the node whose quantizer rounds what a layer reads; None if it rounds it by itself."""
        source = self.edges.sources.get(path)
        if source is None or self.of_edge(*source).levels > self.of_input(path).levels:
            return None
        return source

    def _read_bits(self, path: str) -> int:
        widths = self.numbers.widths
        return widths.outer if path in self.outer else widths.activations

    def _observing(self, bits: int) -> Observing:
        return replace(self.numbers.observing, levels=highest_activation(bits))
