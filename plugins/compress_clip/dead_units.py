"""Dead units: what no weight feeds, or no weight reads, goes; what it still says goes into the next bias.

A unit is a channel of a coupled group: the output of the layers that write it, the input of those that read it.

    no weight reads it     W_next[:, i] = 0       the network ignores it: it goes
    no weight feeds it     W[i, :] = 0            it says c_i for every input: it goes, and
                                                  b_next <- b_next + sum over places W_next[:, i] * c_i

c_i is what arrives at the reader, behind norms, activations and pools; it is measured, and has to be one number for all
calibration examples and all places. Behind a padding of zeros only c_i = 0 goes. What goes takes weights along, which
may leave other units unfed or unread: repeated until nothing more goes. One channel of a group always stays. A
depthwise convolution neither feeds nor reads: it passes on.

That a channel can go at all is proven (`compress_core.channels.proof`), and the network has to compute what it
computed before on the calibration batches.

Source: Han et al. 2015, Learning both weights and connections, sec. 3.5 (neurons without input or output connections).
Cost: one trace of the network if anything is dead, one pass over the calibration batches per round, one proof.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress_clip.constants import fold_constant, input_ranges, sees_constants
from compress_core.channels.coupling import (
    Group,
    Keeps,
    LeftAlone,
    Member,
    coupled_groups,
    cut_keeps,
    keeps_of,
    zero_keeps,
)
from compress_core.channels.cutting import CannotCut, Side, channel_powers, depthwise
from compress_core.channels.proof import TOLERANCE, fault_of, outputs
from compress_core.errors import ModelError
from compress_core.modes import evaluating

if TYPE_CHECKING:
    from compress_core.data import Batch
    from compress_core.run import Run

STEADY = 1e-5
"""Largest relative difference of what counts as one constant; pooling a constant in float32 differs by 1e-6."""
_GATES = {"LSTM": 4, "GRU": 3}

Ranges = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Adjusted:
    """A network without its dead units."""

    model: nn.Module
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For each group that lost units, by name: how many it had, and has."""
    folded: int = 0
    """How many of the units that went have left a constant in the next bias."""
    stays: Sequence[LeftAlone] = ()
    """Where dead units stay, and why."""

    @property
    def removed(self) -> int:
        """How many units went."""
        return sum(before - after for before, after in self.sizes.values())


def without_dead_units(model: nn.Module, run: Run, skip: Collection[str] = ()) -> Adjusted:
    """The network without its dead units; `model` itself stays as it is.

    Args:
        model: the network.
        run: gives the examples on which constants are measured and the result is compared.
        skip: paths of modules that stay as they are.

    Raises:
        ModelError: the network would compute something else.
    """
    if not any(_has_dead(module) for module in model.modules()):
        return Adjusted(model)
    try:
        groups, left = coupled_groups(model, run)
    except ModelError as error:
        return Adjusted(model, stays=[LeftAlone(("the network",), error.what)])
    stays = [entry for entry in left if any(_has_dead(model.get_submodule(path), "out") for path in entry.names)]
    stays += [
        LeftAlone(group.writers, f"`skip` names {named}")
        for group in groups
        if (named := _skipped(group, skip)) and (_unread(model, group) | _unfed(model, group)).any()
    ]
    groups = [group for group in groups if not _skipped(group, skip)]
    batches = list(run.calibration())
    while True:
        search = _Search(deepcopy(model), groups, batches, run)
        if not search.found:
            return Adjusted(model, stays=[*stays, *search.stays])
        if not (faults := _faults(model, search, run)):
            break
        stays += [LeftAlone(group.writers, faults[group.name]) for group in groups if group.name in faults]
        groups = [group for group in groups if group.name not in faults]
    cut_keeps(search.model, search.keeps)
    if not _same(model, search.model, batches, run):
        raise _broken(search.sizes, "the network computes something else without them")
    return Adjusted(search.model, search.sizes, search.folded, [*stays, *search.stays])


class _Search:
    """A copy of the network in which dead units are zeroed, round by round, until nothing more is dead."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], batches: Sequence[Batch], run: Run) -> None:
        self.model, self.groups, self.batches, self.run = model, groups, batches, run
        self.gone = [torch.zeros(group.size, dtype=torch.bool) for group in groups]
        self.folded = 0
        self.stays: list[LeftAlone] = []
        while self._round():
            pass

    @property
    def found(self) -> list[tuple[Group, Keeps]]:
        """The groups that lose units, and what stays of each."""
        pairs = zip(self.groups, self.gone, strict=True)
        return [(group, self._keeps([group], [gone])) for group, gone in pairs if bool(gone.any())]

    @property
    def keeps(self) -> Keeps:
        """The channels that stay, for each place that loses some."""
        found = self._keeps(self.groups, self.gone)
        return {place: keep for place, keep in found.items() if not bool(keep.all())}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """For each group that loses units, by name: how many it had, and has."""
        pairs = zip(self.groups, self.gone, strict=True)
        return {group.name: (group.size, group.size - int(gone.sum())) for group, gone in pairs if bool(gone.any())}

    def _keeps(self, groups: Sequence[Group], gone: Sequence[Tensor]) -> Keeps:
        device = next(self.model.parameters()).device
        return keeps_of(groups, [mask.to(device) for mask in gone])

    def _round(self) -> bool:
        """Zero the units that are dead now, and say whether there were any."""
        unread = [_unread(self.model, group) & ~gone for group, gone in zip(self.groups, self.gone, strict=True)]
        unfed = [
            _unfed(self.model, group) & ~other & ~gone
            for group, other, gone in zip(self.groups, unread, self.gone, strict=True)
        ]
        ranges = self._ranges(unfed)
        self.stays = []
        took = False
        for index, group in enumerate(self.groups):
            foldable = self._foldable(group, unfed[index], ranges)
            taken = _allowed(group, self.gone[index], unread[index] | foldable)
            if bool(taken.any()):
                self._fold(group, taken & foldable, ranges)
                self.gone[index] |= taken
                zero_keeps(self.model, self._keeps([group], [self.gone[index]]))
                took = True
        return took

    def _ranges(self, unfed: Sequence[Tensor]) -> Ranges:
        """What arrives at the readers of unfed units."""
        speaking = [group for group, mask in zip(self.groups, unfed, strict=True) if bool(mask.any())]
        paths = {member.place[0] for group in speaking for member in _readers(self.model, group)}
        return input_ranges(self.model, paths, self.batches, self.run) if paths else {}

    def _foldable(self, group: Group, unfed: Tensor, ranges: Ranges) -> Tensor:
        """The unfed units whose constant every reader can take into its bias; notes why the others stay."""
        steady, whole = unfed.clone(), unfed.clone()
        for member in _readers(self.model, group) if bool(unfed.any()) else ():
            path = member.place[0]
            if path not in ranges:
                steady[:] = False
                continue
            low, high = (bound[member.index] for bound in ranges[path])
            steady[member.root[(high - low) > STEADY * high.abs()]] = False
            if not sees_constants(self.model.get_submodule(path)):
                whole[member.root[(low != 0) | (high != 0)]] = False
        for mask, reason in (
            (unfed & ~steady, "what they say is no constant"),
            (steady & ~whole, "their constant is not 0, and a convolution pads it with zeros"),
        ):
            if bool(mask.any()):
                self.stays.append(LeftAlone(group.writers, reason))
        return steady & whole

    def _fold(self, group: Group, units: Tensor, ranges: Ranges) -> None:
        """Put the constants of units into the biases of all who read them."""
        speaking = torch.zeros_like(units)
        for member in _readers(self.model, group) if bool(units.any()) else ():
            low, high = ranges[member.place[0]]
            chosen = member.index[units[member.root]]
            constant = torch.zeros_like(low)
            constant[chosen] = (low[chosen] + high[chosen]) / 2
            speaking[member.root[constant[member.index] != 0]] = True
            fold_constant(self.model.get_submodule(member.place[0]), constant)
        self.folded += int(speaking.sum())


def _readers(model: nn.Module, group: Group) -> list[Member]:
    return [member for member in group.members if member.place[1] == "in" and _has_weights(model, member)]


def _writers(model: nn.Module, group: Group) -> list[Member]:
    return [member for member in group.members if member.place[1] == "out" and _has_weights(model, member)]


def _has_weights(model: nn.Module, member: Member) -> bool:
    module = model.get_submodule(member.place[0])
    return isinstance(module, nn.Linear | _ConvNd | nn.Embedding) and not depthwise(module)


def _unread(model: nn.Module, group: Group) -> Tensor:
    return _silent(model, group, _readers(model, group))


def _unfed(model: nn.Module, group: Group) -> Tensor:
    return _silent(model, group, _writers(model, group))


def _silent(model: nn.Module, group: Group, members: Sequence[Member]) -> Tensor:
    """The channels of a group that some of these layers have, and all that have them have as zeros, (group size,)."""
    had = torch.zeros(group.size, dtype=torch.bool)
    speaking = torch.zeros_like(had)
    for member in members:
        zero = _zero_channels(model.get_submodule(member.place[0]), "out" if member.place[1] == "out" else "in")
        had[member.root] = True
        speaking[member.root[~zero[member.index]]] = True
    return had & ~speaking


def _zero_channels(module: nn.Module, side: Side) -> Tensor:
    """Which channels of a layer have zeros only, (channels,), on the CPU."""
    return (channel_powers(module, side, 1) == 0).cpu()


def _skipped(group: Group, skip: Collection[str]) -> str | None:
    """The first layer of a group that is to stay as it is."""
    return next((member.place[0] for member in group.members if member.place[0] in skip), None)


def _allowed(group: Group, gone: Tensor, found: Tensor) -> Tensor:
    """The first of the found channels, as many in each block as all blocks can lose; one of each block stays."""
    width = group.size // group.blocks
    rows = found.reshape(group.blocks, width)
    limit = min(int(rows.sum(1).min()), width - 1 - int(gone.reshape(group.blocks, width)[0].sum()))
    return (rows & (rows.cumsum(1) <= limit)).reshape(-1)


def _faults(model: nn.Module, search: _Search, run: Run) -> dict[str, str]:
    """The groups, by name, whose units cannot be removed, and why.

    Raises:
        ModelError: each group by itself can lose its units, and all together cannot.
    """
    together = fault_of(model, search.keeps, run)
    if together is None:
        return {}
    alone = {group.name: fault_of(model, keeps, run) for group, keeps in search.found}
    if wrong := {name: fault for name, fault in alone.items() if fault is not None}:
        return wrong
    raise _broken(alone, together)


@torch.no_grad()
def _same(before: nn.Module, after: nn.Module, batches: Iterable[Batch], run: Run) -> bool:
    """Whether two networks compute the same for the batches, up to rounding."""
    with evaluating(before), evaluating(after):
        for batch in batches:
            arguments = run.task.inputs(batch)
            for one, other in zip(outputs(before, arguments, run), outputs(after, arguments, run), strict=True):
                error = (one.double() - other.double()).norm()
                if not bool(error <= TOLERANCE.get(one.dtype, 1e-2) * one.double().norm()):
                    return False
    return True


def _broken(names: Iterable[str], fault: str) -> ModelError:
    return ModelError(
        f"the dead units of {', '.join(names)} cannot be removed: {fault}",
        mend="name these layers in `skip`, or keep dead units with `adjust: false`",
    )


def _has_dead(module: nn.Module, *sides: Side) -> bool:
    """Whether a layer has a channel of zeros on one of these sides, or on any; a recurrent unit counts as output."""
    match module:
        case nn.Linear() | _ConvNd():
            try:
                return any(bool(_zero_channels(module, side).any()) for side in sides or ("out", "in"))
            except CannotCut:
                return False
        case nn.MultiheadAttention() if module.in_proj_weight is not None:
            return bool((module.in_proj_weight == 0).all(1).any())
        case nn.RNNBase():
            gates = _GATES.get(module.mode, 1)
            rows = {
                name: (weight.reshape(gates, -1, weight.shape[1]) == 0).all(2).all(0)
                for name, weight in module.named_parameters()
                if name.startswith(("weight_ih", "weight_hh"))
            }
            return any(bool((rows[name] & rows[name.replace("ih", "hh")]).any()) for name in rows if "_ih" in name)
        case _:
            return False
