"""The layers that take the place of one: candidates with what they keep and cost, the choice, the building.

A candidate is a set of ranks. Of those that need fewer parameters and fewer multiplications than the layer,
`energy` takes the cheapest that keeps enough, `ratio` the one that keeps the most within its parameters.
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

Method = Literal["tucker", "spatial", "channel"]
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
class Wish:
    """What is asked of the factors: one of `energy` and `ratio`."""

    energy: float | None = None
    ratio: float | None = None
    method: Method = "tucker"
    multiple: int = 1


@dataclass(frozen=True)
class Candidates:
    """Ranks, the share of the squared norm that they keep, and what they cost; one entry each."""

    ranks: list[tuple[int, ...]]
    kept: Tensor
    parameters: Tensor
    macs: Tensor


@dataclass(frozen=True)
class Factors:
    """The layers that take the place of one."""

    pieces: nn.Sequential
    ranks: tuple[int, ...]
    error: float
    """||W - W'|| / ||W||."""


def factorize(layer: Layer, area: Area, wish: Wish) -> Factors | None:
    """The pieces of a layer, or None where they would not save both parameters and multiplications."""
    found = candidates(layer, area, wish)
    full_parameters = layer.weight.numel()
    full_macs = full_parameters * area.outputs
    chosen = choose(found, full_parameters, full_macs, wish)
    if chosen is None:
        return None
    ranks = found.ranks[chosen]
    pieces = _split(layer, ranks, wish.method)
    kept = float(found.kept[chosen]) if len(ranks) == 1 else _kept_by(pieces, layer.weight)
    return Factors(_build(layer, pieces), ranks, max(0.0, 1.0 - kept) ** 0.5)


def choose(found: Candidates, full_parameters: int, full_macs: int, wish: Wish) -> int | None:
    """The index of the candidate to take; None if none saves anything as it is wished."""
    allowed = (found.parameters < full_parameters) & (found.macs < full_macs)
    if wish.ratio is not None:
        allowed &= found.parameters <= wish.ratio * full_parameters
        score = -found.kept
    else:
        assert wish.energy is not None
        allowed &= found.kept >= wish.energy - _SLACK
        score = found.parameters / full_parameters + found.macs / full_macs
    if not bool(allowed.any()):
        return None
    return int(torch.where(allowed, score, torch.inf).argmin())


def candidates(layer: Layer, area: Area, wish: Wish) -> Candidates:
    """Every set of ranks that may be chosen for a layer."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        kept = kept_by_rank(torch.linalg.svdvals(weight.double()))
        return _of_one_rank(kept, (weight.shape[1], area.outputs), (weight.shape[0], area.outputs), wish.multiple)
    outputs, inputs, height, width = weight.shape
    match _method(layer, wish.method):
        case "spatial":
            kept = kept_by_rank(torch.linalg.svdvals(spatial_matrix(weight).double()))
            first, second = inputs * height, outputs * width
            return _of_one_rank(kept, (first, area.between), (second, area.outputs), wish.multiple)
        case "channel":
            kept = kept_by_rank(torch.linalg.svdvals(weight.flatten(1).double()))
            first, second = inputs * height * width, outputs
            return _of_one_rank(kept, (first, area.outputs), (second, area.outputs), wish.multiple)
        case "tucker":
            return _of_two_ranks(weight, area, wish.multiple)


def _method(layer: nn.Conv2d, method: Method) -> Method:
    """A 1x1 kernel is a matrix, whatever the method."""
    return "channel" if layer.kernel_size == (1, 1) else method


def _multiples(largest: int, multiple: int) -> Tensor:
    """The ranks up to `largest` that are multiples, and `largest` itself."""
    ranks = torch.arange(multiple, largest + 1, multiple)
    return ranks if len(ranks) and ranks[-1] == largest else torch.cat([ranks, torch.tensor([largest])])


def _of_one_rank(kept: Tensor, first: tuple[int, int], second: tuple[int, int], multiple: int) -> Candidates:
    """Candidates of two pieces, each with its parameters per rank and the positions at which it computes."""
    ranks = _multiples(len(kept), multiple)
    return Candidates(
        ranks=[(rank,) for rank in ranks.tolist()],
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
        ranks=[(int(out), int(into)) for out, into in grid.tolist()],
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
    weight = layer.weight.detach()
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


def _kept_by(pieces: Sequence[_Piece], weight: Tensor) -> float:
    """The share of ||W||^2 in the core of a Tucker chain, whose bases are orthonormal."""
    core = next(piece.weight for piece in pieces if piece.axes)
    return float(core.square().sum() / weight.detach().double().square().sum())


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
        made.weight.copy_(piece.weight)
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
