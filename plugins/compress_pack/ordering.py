"""Hidden units in another order: the network computes the same, and what is alike lies side by side.

    order = argsort of minus (weights that are left of what a unit reads and of what reads it)

Units with many weights come first, so that the number of weights in a row or column of a matrix is nearly known from
the one before it. A unit is a channel of a coupled group: every layer that writes, reads or norms it is permuted alike.

Source: Hecht-Nielsen 1990, "On the algebraic structure of feedforward network weight spaces" (the permutations that
leave a network as it is). Cost: one trace of the network, and two forward passes of the example.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress_core.channels.coupling import Group, Member, coupled_groups
from compress_core.channels.cutting import CannotCut, axes, blocks_of
from compress_core.channels.proof import exact, outputs
from compress_core.modes import evaluating

if TYPE_CHECKING:
    from compress_core.run import Run

TOLERANCE = 1e-9
"""How far outputs in float64 may differ, as a share of the largest."""


def ordered_units(model: nn.Module, run: Run) -> tuple[nn.Module, int, int]:
    """A copy with sorted units, how many units have moved, and how many groups stay since they cannot move.

    Raises:
        ModelError: the network cannot be traced.
    """
    model = deepcopy(model)
    moved = stays = 0
    for group in coupled_groups(model, run)[0]:
        changed = deepcopy(model)
        try:
            order = _order(changed, group)
            for member in group.members:
                _permute(changed, member, order)
        except CannotCut:
            stays += 1
            continue
        if not _same(model, changed, run):
            stays += 1
            continue
        model, moved = changed, moved + int((order != torch.arange(group.size)).sum())
    return model, moved, stays


def _order(model: nn.Module, group: Group) -> Tensor:
    """The units of a group, those with the most weights first."""
    if group.blocks != 1:
        raise CannotCut("it has blocks")
    left = torch.zeros(group.size, dtype=torch.int64)
    for member in group.members:
        path, side, _ = member.place
        if side in {"in", "out"} and (axis := _axes(model, path, side).get("weight")) is not None:
            weight = model.get_submodule(path).get_parameter("weight").detach()
            if weight.ndim > 1:
                alive = (weight != 0).movedim(axis, 0).flatten(1).sum(1).cpu()
                left.index_add_(0, member.root, alive[member.index])
    return left.argsort(descending=True, stable=True)


def _axes(model: nn.Module, path: str, side: str) -> dict[str, int]:
    module = model.get_submodule(path)
    if blocks_of(module) != 1:
        raise CannotCut("it has groups")
    return axes(module, "in" if side == "in" else "out")


@torch.no_grad()
def _permute(model: nn.Module, member: Member, order: Tensor) -> None:
    """Put the channels of one layer into the order of the units."""
    path, side, axis = member.place
    if side == "attribute":
        return
    new = torch.arange(member.size)
    for places, origins in zip(_places(member, range(len(order))), _places(member, order.tolist()), strict=True):
        if len(places) != len(origins):
            raise CannotCut("its units have different numbers of channels")
        new[places] = origins
    if side == "parameter":
        _reorder(model.get_parameter(path), axis, new)
        return
    module = model.get_submodule(path)
    for name, along in _axes(model, path, side).items():
        _reorder(getattr(module, name), along, new)


def _places(member: Member, units: Sequence[int]) -> list[Tensor]:
    """The channels of each unit in a layer."""
    return [member.index[member.root == unit].sort().values for unit in units]


def _reorder(tensor: Tensor, axis: int, new: Tensor) -> None:
    tensor.copy_(tensor.index_select(axis, new.to(tensor.device)))


def _same(model: nn.Module, changed: nn.Module, run: Run) -> bool:
    """Whether two networks compute the same, up to the order of additions."""
    before, arguments = exact(deepcopy(model), run)
    after, others = exact(deepcopy(changed), run)
    with evaluating(before), evaluating(after):
        for one, other in zip(outputs(before, arguments, run), outputs(after, others, run), strict=True):
            tolerance = TOLERANCE if one.dtype == torch.float64 else 1e-4
            if not torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(one.abs().max())):
                return False
    return True
