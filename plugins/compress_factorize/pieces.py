"""The layers that take the place of one: candidates with what they keep and cost, and the building.

A candidate is a set of ranks. Only those count that need fewer parameters and fewer multiplications than the
layer, and of these only the ones that no other candidate betters in both what it keeps and its parameters.
All is computed on the processor in float64, wherever the layer is; the pieces are built where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress_factorize.lowrank import (
    channel_factors,
    kept_by_rank,
    kept_by_ranks,
    matrix_factors,
    spatial_factors,
    spatial_matrix,
    tucker_factors,
)

Method = Literal["spatial", "tucker", "channel"]
Layer = nn.Linear | nn.Conv2d
_SLACK = 1e-12


@dataclass(frozen=True)
class Area:
    """Positions at which a layer computes for one batch, over all its calls."""

    inputs: int
    """Rows times columns of the input, or all leading axes of a linear layer."""
    outputs: int
    between: int
    """Rows of the output times columns of the input."""


@dataclass(frozen=True)
class Candidates:
    """Sets of ranks, one entry each; the more an entry keeps, the more parameters it has."""

    ranks: Tensor
    """(n, number of ranks)."""
    kept: Tensor
    """(n,), the share of the squared norm of the weight."""
    parameters: Tensor
    macs: Tensor

    def __len__(self) -> int:
        return len(self.kept)

    def cheapest(self, energy: float) -> int | None:
        """The entry with the fewest parameters that keeps at least that much."""
        enough = (self.kept >= energy - _SLACK).nonzero()
        return int(enough[0]) if len(enough) else None

    def take(self, entries: Tensor) -> Candidates:
        """Some of the entries."""
        return Candidates(self.ranks[entries], self.kept[entries], self.parameters[entries], self.macs[entries])


@dataclass(frozen=True)
class Factors:
    """The layers that take the place of one."""

    pieces: nn.Sequential
    ranks: tuple[int, ...]
    error: float
    """||W - W'|| / ||W||."""


def factors_of(layer: Layer, ranks: Sequence[int], method: Method) -> Factors:
    """The pieces of a layer with these ranks."""
    pieces = _split(layer, ranks, method)
    return Factors(_build(layer, pieces), tuple(ranks), _error(layer, pieces))


def worthwhile(layer: Layer, area: Area, method: Method, multiple: int = 1) -> Candidates:
    """The candidates that save parameters and multiplications and are bettered by no other, the least first."""
    found = candidates(layer, area, method, multiple)
    full = layer.weight.numel()
    saving = (found.parameters < full) & (found.macs < full * area.outputs) & (found.kept > 0)
    found = found.take(saving.nonzero().flatten())
    order = sorted(range(len(found)), key=lambda entry: (-found.kept[entry].item(), found.parameters[entry].item()))
    frontier: list[int] = []
    for entry in order:
        if not frontier or found.parameters[entry] < found.parameters[frontier[-1]]:
            frontier.append(entry)
    return found.take(torch.tensor(frontier[::-1], dtype=torch.long))


def candidates(layer: Layer, area: Area, method: Method, multiple: int = 1) -> Candidates:
    """Every set of ranks that a layer may get."""
    weight = _weight_of(layer)
    if isinstance(layer, nn.Linear):
        kept = kept_by_rank(torch.linalg.svdvals(weight))
        return _of_one_rank(kept, (weight.shape[1], area.outputs), (weight.shape[0], area.outputs), multiple)
    outputs, inputs, height, width = weight.shape
    match _method(layer, method):
        case "spatial":
            kept = kept_by_rank(torch.linalg.svdvals(spatial_matrix(weight)))
            return _of_one_rank(kept, (inputs * height, area.between), (outputs * width, area.outputs), multiple)
        case "channel":
            kept = kept_by_rank(torch.linalg.svdvals(weight.flatten(1)))
            return _of_one_rank(kept, (inputs * height * width, area.outputs), (outputs, area.outputs), multiple)
        case "tucker":
            return _of_two_ranks(weight, area, multiple)


def _weight_of(layer: Layer) -> Tensor:
    """The weight to compute with: on the processor, in float64."""
    return layer.weight.detach().cpu().double()


def _method(layer: nn.Conv2d, method: Method) -> Method:
    """A 1x1 kernel is a matrix, whatever the method."""
    return "channel" if layer.kernel_size == (1, 1) else method


def _multiples(largest: int, multiple: int) -> Tensor:
    """The ranks up to `largest` that are multiples, and `largest` itself."""
    return torch.tensor(sorted({*range(multiple, largest + 1, multiple), largest}))


def _of_one_rank(kept: Tensor, first: tuple[int, int], second: tuple[int, int], multiple: int) -> Candidates:
    """Candidates of two pieces, each with its parameters per rank and the positions at which it computes."""
    ranks = _multiples(len(kept), multiple)
    return Candidates(
        ranks=ranks[:, None],
        kept=kept[ranks - 1],
        parameters=ranks * (first[0] + second[0]),
        macs=ranks * (first[0] * first[1] + second[0] * second[1]),
    )


def _of_two_ranks(weight: Tensor, area: Area, multiple: int) -> Candidates:
    """Candidates of a Tucker-2 chain; a 1x1 piece that would keep every channel is left out and costs nothing."""
    outputs, inputs, height, width = weight.shape
    kept = kept_by_ranks(weight)
    ranks_out, ranks_in = _multiples(kept.shape[0], multiple), _multiples(kept.shape[1], multiple)
    grid = torch.cartesian_prod(ranks_out, ranks_in)
    rank_out, rank_in = grid[:, 0], grid[:, 1]
    first = torch.where(rank_in < inputs, inputs * rank_in, 0)
    core = rank_out * rank_in * height * width
    last = torch.where(rank_out < outputs, rank_out * outputs, 0)
    return Candidates(
        ranks=grid,
        kept=kept[rank_out - 1, rank_in - 1],
        parameters=first + core + last,
        macs=first * area.inputs + (core + last) * area.outputs,
    )


@dataclass(frozen=True)
class _Piece:
    weight: Tensor
    axes: tuple[int, ...] = ()
    """The axes of the image along which it takes over stride, padding and dilation; a 1x1 kernel has none."""


def _split(layer: Layer, ranks: Sequence[int], method: Method) -> list[_Piece]:
    """The pieces in the order in which they are applied."""
    weight = _weight_of(layer)
    if isinstance(layer, nn.Linear):
        left, right = matrix_factors(weight, ranks[0])
        return [_Piece(right), _Piece(left)]
    match _method(layer, method):
        case "spatial":
            vertical, horizontal = spatial_factors(weight, ranks[0])
            return [_Piece(vertical, (0,)), _Piece(horizontal, (1,))]
        case "channel":
            first, second = channel_factors(weight, ranks[0])
            return [_Piece(first, (0, 1)), _Piece(second)]
        case "tucker":
            basis_in, core, basis_out = tucker_factors(weight, *ranks)
            pieces = [_Piece(core, (0, 1))]
            if ranks[1] < weight.shape[1]:
                pieces.insert(0, _Piece(basis_in.t()[:, :, None, None]))
            if ranks[0] < weight.shape[0]:
                pieces.append(_Piece(basis_out[:, :, None, None]))
            return pieces


def _error(layer: Layer, pieces: Sequence[_Piece]) -> float:
    """||W - W'|| / ||W||, with W' multiplied out."""
    found = pieces[0].weight
    for piece in pieces[1:]:
        found = _after(piece.weight, found)
    weight = _weight_of(layer)
    return float(torch.linalg.vector_norm(weight - found) / torch.linalg.vector_norm(weight))


def _after(second: Tensor, first: Tensor) -> Tensor:
    """The weight of a piece `second` (out, r, ...) behind a piece `first` (r, in, ...): (out, in, ...).

    Along each axis of the image, one of the two kernels has a single entry.
    """
    if second.ndim == 2:
        return second @ first
    joined = torch.einsum("orhw,riab->oihawb", second, first)
    outputs, inputs, height, above, width, beside = joined.shape
    return joined.reshape(outputs, inputs, height * above, width * beside)


def _build(layer: Layer, pieces: Sequence[_Piece]) -> nn.Sequential:
    built = [_layer_of(layer, piece, last=piece is pieces[-1]) for piece in pieces]
    return nn.Sequential(*built).train(layer.training)


def _layer_of(layer: Layer, piece: _Piece, *, last: bool) -> Layer:
    """A layer with the weight of a piece; the last one takes the bias."""
    outputs, inputs = piece.weight.shape[:2]
    placed = {"bias": last and layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    made: Layer
    if isinstance(layer, nn.Linear):
        made = nn.utils.skip_init(nn.Linear, inputs, outputs, **placed)  # type: ignore[no-untyped-call]
    else:
        kernel, geometry = tuple(piece.weight.shape[2:]), _geometry(layer, piece.axes)
        made = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, inputs, outputs, kernel, **geometry, **placed
        )
    with torch.no_grad():
        made.weight.copy_(piece.weight.to(layer.weight.dtype))
        made.weight.requires_grad_(layer.weight.requires_grad)
        if made.bias is not None and layer.bias is not None:
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
