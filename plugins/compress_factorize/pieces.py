"""The layers that take the place of one: candidates with what they keep and cost, and the building.

A candidate is a set of ranks. Only those count that need fewer parameters and fewer multiplications than the
layer, and of these only the ones that no other candidate betters in both what it keeps and what it costs.
All is computed on the processor in float64, wherever the layer is; the pieces are built where it is.

A `Method` is one way to split a layer; the table of them is in `methods.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress_factorize.inputs import Inputs

Layer = nn.Linear | nn.Conv2d | nn.Embedding
_SLACK = 1e-12


@dataclass(frozen=True)
class Area:
    """Positions at which a layer computes for one batch, over all its calls."""

    inputs: int
    """Rows times columns of the input, or all leading axes of a linear layer, or words."""
    outputs: int
    between: int
    """Rows of the output times columns of the input."""


@dataclass(frozen=True)
class Candidates:
    """Sets of ranks, one entry each."""

    ranks: Tensor
    """(n, number of ranks)."""
    kept: Tensor
    """(n,), the share of the squared norm of the weight, or of the responses where the inputs are known."""
    parameters: Tensor
    """(n,), of the weights of all pieces."""
    macs: Tensor
    """(n,), for one batch of the `Area`."""

    def __len__(self) -> int:
        return len(self.kept)

    def cost(self, of: str) -> Tensor:
        """What it costs, (n,): its parameters, or else its multiplications."""
        return self.parameters if of == "parameters" else self.macs

    def cheapest(self, energy: float, of: str = "parameters") -> int | None:
        """The entry with the least cost that keeps at least that much."""
        enough = (self.kept >= energy - _SLACK).nonzero().flatten()
        return int(enough[self.cost(of)[enough].argmin()]) if len(enough) else None

    def take(self, entries: Tensor) -> Candidates:
        """Some of the entries."""
        return Candidates(self.ranks[entries], self.kept[entries], self.parameters[entries], self.macs[entries])


@dataclass(frozen=True)
class Factors:
    """The layers that take the place of one."""

    pieces: nn.Sequential
    ranks: tuple[int, ...]
    error: float
    """||W - W'|| / ||W||; of the responses where the inputs are known, sqrt(E|y - y'|^2 / E|y|^2)."""


@dataclass(frozen=True)
class Piece:
    """One layer of a chain: its weight, (out, in / groups) or (out, in / groups, kH, kW)."""

    weight: Tensor
    axes: tuple[int, ...] = ()
    """The axes of the image along which it takes over stride, padding and dilation; a 1x1 kernel has none."""
    groups: int = 1


class Method(ABC):
    """One way to split a layer: what every set of ranks keeps and costs, and the layers for one of them."""

    sees_inputs: ClassVar[bool] = False
    """Whether it fits the responses where the inputs are known; else it fits the weight."""

    @abstractmethod
    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """Every set of ranks that the layer may get."""

    @abstractmethod
    def factors(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> Factors:
        """The layers with these ranks."""

    def unfoldings(self, layer: Layer) -> list[Tensor]:
        """The matrices whose ranks are the ranks of a candidate, in their order; none where they are no such ranks."""
        return []

    def dense(self, layer: Layer, area: Area) -> tuple[int, int]:
        """Parameters of the layer's weight as it is, and multiplications for one batch."""
        return layer.weight.numel(), layer.weight.numel() * area.outputs

    def saving(self, found: Candidates, layer: Layer, area: Area) -> Tensor:
        """Which candidates are cheaper than the layer, (n,) of bool."""
        parameters, macs = self.dense(layer, area)
        return (found.parameters < parameters) & (found.macs < macs)


class Chain(Method):
    """A method whose layers are applied one after the other, each a piece; the last one gets the bias."""

    @abstractmethod
    def split(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> list[Piece]:
        """The pieces in the order in which they are applied."""

    def factors(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> Factors:
        """The pieces as layers of torch."""
        pieces = self.split(layer, ranks, inputs)
        lost = weight_of(layer) - product_of(pieces)
        return Factors(build(layer, pieces, shift_of(lost, inputs)), tuple(ranks), error_of(layer, lost, inputs))


def saving(method: Method, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
    """The candidates that are cheaper than the layer and keep something of it."""
    found = method.candidates(layer, area, multiple, inputs)
    return found.take((method.saving(found, layer, area) & (found.kept > 0)).nonzero().flatten())


def worthwhile(
    method: Method, layer: Layer, area: Area, multiple: int = 1, *, inputs: Inputs | None = None, of: str = "parameters"
) -> Candidates:
    """The candidates that are cheaper than the layer and bettered by no other, the least first.

    Args:
        method: the way to split.
        layer: the layer.
        area: where it computes.
        multiple: ranks are multiples of this.
        inputs: what is known of the inputs, for the responses' errors in place of the weight's.
        of: the cost that counts, `parameters`; multiplications for anything else.
    """
    found = saving(method, layer, area, multiple, inputs)
    parameters, macs = method.dense(layer, area)
    found = found.take((found.cost(of) < (parameters if of == "parameters" else macs)).nonzero().flatten())
    order = found.cost(of).argsort(stable=True)
    order = order[found.kept[order].argsort(descending=True, stable=True)]
    cost = found.cost(of)[order]
    cheaper = torch.ones(len(order), dtype=torch.bool)
    cheaper[1:] = cost[1:] < cost.cummin(0).values[:-1]
    return found.take(order[cheaper].flip(0))


def weight_of(layer: nn.Module) -> Tensor:
    """The weight to compute with: on the processor, in float64."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().cpu().double()


def multiples_to(largest: int, multiple: int) -> Tensor:
    """The ranks up to `largest` that are multiples, and `largest` itself."""
    return torch.tensor(sorted({*range(multiple, largest + 1, multiple), largest}))


def product_of(pieces: Sequence[Piece]) -> Tensor:
    """The weight that a chain of pieces applies, (out, in, ...)."""
    found = _ungrouped(pieces[0])
    for piece in pieces[1:]:
        found = _after(_ungrouped(piece), found)
    return found


def error_of(layer: Layer, lost: Tensor, inputs: Inputs | None = None) -> float:
    """||lost|| / ||W||, of the responses where the inputs are known."""
    weight = weight_of(layer)
    if inputs is not None and (whole := inputs.energy(weight)) > 0:
        return float((inputs.energy(lost) / whole).clamp(min=0).sqrt())
    return float(torch.linalg.vector_norm(lost) / torch.linalg.vector_norm(weight))


def shift_of(lost: Tensor, inputs: Inputs | None) -> Tensor | None:
    """What the bias has to take over, (out,): the mean response of the part of the weight that was lost."""
    return None if inputs is None or inputs.mean is None else lost.flatten(1) @ inputs.mean


def build(layer: Layer, pieces: Sequence[Piece], shift: Tensor | None = None) -> nn.Sequential:
    """The pieces as layers, where `layer` is and in its mode.

    Args:
        layer: the layer that they replace.
        pieces: in the order in which they are applied.
        shift: what is added to the bias, if there is one, (out,).
    """
    built = [_layer_of(layer, piece, last=piece is pieces[-1]) for piece in pieces]
    if shift is not None and isinstance(bias := built[-1].bias, Tensor):
        with torch.no_grad():
            bias.add_(shift.to(bias))
    return nn.Sequential(*built).train(layer.training)


def _ungrouped(piece: Piece) -> Tensor:
    """The weight of a piece as that of a layer without groups: block by block, zeros elsewhere."""
    if piece.groups == 1:
        return piece.weight
    blocks = piece.weight.chunk(piece.groups)
    outputs, inputs = blocks[0].shape[:2]
    whole = piece.weight.new_zeros(outputs * piece.groups, inputs * piece.groups, *piece.weight.shape[2:])
    for index, block in enumerate(blocks):
        whole[index * outputs : (index + 1) * outputs, index * inputs : (index + 1) * inputs] = block
    return whole


def _after(second: Tensor, first: Tensor) -> Tensor:
    """The weight of a piece `second` (out, r, ...) behind a piece `first` (r, in, ...): (out, in, ...).

    Along each axis of the image, one of the two kernels has a single entry.
    """
    if second.ndim == 2:
        return second @ first
    joined = torch.einsum("orhw,riab->oihawb", second, first)
    outputs, inputs, height, above, width, beside = joined.shape
    return joined.reshape(outputs, inputs, height * above, width * beside)


def _layer_of(layer: Layer, piece: Piece, *, last: bool) -> Layer:
    """A layer with the weight of a piece; the last one takes the bias."""
    outputs, inputs = piece.weight.shape[:2]
    placed = {"bias": last and layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    made: Layer
    if isinstance(layer, nn.Linear):
        made = nn.utils.skip_init(nn.Linear, inputs, outputs, **placed)  # type: ignore[no-untyped-call]
    else:
        assert isinstance(layer, nn.Conv2d)
        kernel, geometry = tuple(piece.weight.shape[2:]), _geometry(layer, piece.axes)
        made = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, inputs * piece.groups, outputs, kernel, groups=piece.groups, **geometry, **placed
        )
    with torch.no_grad():
        made.weight.copy_(piece.weight.to(layer.weight.dtype))
        made.weight.requires_grad_(layer.weight.requires_grad)
        if isinstance(made.bias, Tensor) and isinstance(layer.bias, Tensor):
            made.bias.copy_(layer.bias)
            made.bias.requires_grad_(layer.bias.requires_grad)
    return made


def _geometry(layer: nn.Conv2d, axes: tuple[int, ...]) -> dict[str, Any]:
    def along(values: tuple[int, ...], otherwise: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else otherwise for axis, value in enumerate(values))

    return {
        "stride": along(layer.stride, 1),
        "padding": layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        "dilation": along(layer.dilation, 1),
        "padding_mode": layer.padding_mode,
    }
