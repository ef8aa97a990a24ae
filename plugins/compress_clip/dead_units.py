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

from compress_clip.constants import fold_constant, input_ranges, sees_constants
from compress_clip.silence import has_dead, never_fed, never_read, readers
from compress_core.channels.attributes import with_attributes
from compress_core.channels.coupling import Group, Keeps, LeftAlone, coupled_groups, cut_keeps, keeps_of, zero_keeps
from compress_core.channels.cutting import size_of
from compress_core.channels.proof import DOES_NOT_RUN, TOLERANCE, fault_of, outputs
from compress_core.errors import ModelError
from compress_core.modes import evaluating

if TYPE_CHECKING:
    from compress_core.data import Batch
    from compress_core.run import Run

STEADY = 1e-5
"""Largest relative difference of what counts as one constant; pooling a constant in float32 differs by 1e-6."""

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
    if not any(has_dead(module) for module in model.modules()):
        return Adjusted(model)
    try:
        groups, left = coupled_groups(model, run)
    except ModelError as error:
        return Adjusted(model, stays=[LeftAlone(("the network",), error.what)])
    stays = [
        LeftAlone(group.writers, f"`skip` names {named}")
        for group in groups
        if (named := _skipped(group, skip)) and (never_read(model, group) | never_fed(model, group)).any()
    ]
    stays += _out_of_reach(model, groups, left, skip)
    groups = [group for group in groups if not _skipped(group, skip)]
    batches = list(run.calibration())
    while True:
        search = _Search(deepcopy(model), groups, batches, run)
        if not search.lost:
            return Adjusted(model, stays=[*stays, *search.stays])
        fault = fault_of(model, search.keeps, run)
        if fault is None:
            cut_keeps(search.model, search.keeps)
            if _same(model, search.model, batches, run):
                return Adjusted(search.model, search.sizes, search.folded, [*stays, *search.stays])
        verdicts = _each_alone(model, search, batches, run)
        if not verdicts:
            raise _broken(search.sizes, fault or "the network computes something else without them")
        settled = [verdicts.get(group.name, group) for group in groups]
        pairs = zip(groups, settled, strict=True)
        stays += [LeftAlone(group.writers, verdict) for group, verdict in pairs if isinstance(verdict, str)]
        groups = [group for group in settled if isinstance(group, Group)]


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
    def lost(self) -> list[tuple[Group, Tensor]]:
        """The groups that lose units, each with a mask of them."""
        return [(group, gone) for group, gone in zip(self.groups, self.gone, strict=True) if bool(gone.any())]

    @property
    def keeps(self) -> Keeps:
        """The channels that stay, for each place that loses some."""
        found = self._keeps(self.groups, self.gone)
        return {place: keep for place, keep in found.items() if not bool(keep.all())}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """For each group that loses units, by name: how many it had, and has."""
        return {group.name: (group.size, group.size - int(gone.sum())) for group, gone in self.lost}

    def _keeps(self, groups: Sequence[Group], gone: Sequence[Tensor]) -> Keeps:
        device = next(self.model.parameters()).device
        return keeps_of(groups, [mask.to(device) for mask in gone])

    def _round(self) -> bool:
        """Zero the units that are dead now, and say whether there were any."""
        unread = [never_read(self.model, group) & ~gone for group, gone in zip(self.groups, self.gone, strict=True)]
        unfed = [
            never_fed(self.model, group) & ~other & ~gone
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
        paths = {member.place[0] for group in speaking for member in readers(self.model, group)}
        return input_ranges(self.model, paths, self.batches, self.run) if paths else {}

    def _foldable(self, group: Group, unfed: Tensor, ranges: Ranges) -> Tensor:
        """The unfed units whose constant every reader can take into its bias; notes why the others stay."""
        steady, whole, reached = unfed.clone(), unfed.clone(), unfed.clone()
        for member in readers(self.model, group) if bool(unfed.any()) else ():
            path = member.place[0]
            if path not in ranges:
                reached[member.root] = False
                continue
            low, high = (bound[member.index] for bound in ranges[path])
            steady[member.root[(high - low) > STEADY * high.abs()]] = False
            if not sees_constants(self.model.get_submodule(path)):
                whole[member.root[(low != 0) | (high != 0)]] = False
        for mask, reason in (
            (unfed & ~reached, "the calibration examples do not reach all layers that read them"),
            (reached & ~steady, "what they say is no constant"),
            (reached & steady & ~whole, "their constant is not 0, and a convolution pads it with zeros"),
        ):
            if bool(mask.any()):
                self.stays.append(LeftAlone(group.writers, reason))
        return reached & steady & whole

    def _fold(self, group: Group, units: Tensor, ranges: Ranges) -> None:
        """Put the constants of units into the biases of all who read them."""
        speaking = torch.zeros_like(units)
        for member in readers(self.model, group) if bool(units.any()) else ():
            low, high = ranges[member.place[0]]
            chosen = member.index[units[member.root]]
            constant = torch.zeros_like(low)
            constant[chosen] = (low[chosen] + high[chosen]) / 2
            speaking[member.root[constant[member.index] != 0]] = True
            fold_constant(self.model.get_submodule(member.place[0]), constant)
        self.folded += int(speaking.sum())


def _skipped(group: Group, skip: Collection[str]) -> str | None:
    """The first layer of a group that is to stay as it is."""
    return next((member.place[0] for member in group.members if member.place[0] in skip), None)


def _allowed(group: Group, gone: Tensor, found: Tensor) -> Tensor:
    """The first of the found channels, as many in each block as all blocks can lose; one of each block stays."""
    width = group.size // group.blocks
    rows = found.reshape(group.blocks, width)
    limit = min(int(rows.sum(1).min()), width - 1 - int(gone.reshape(group.blocks, width)[0].sum()))
    return (rows & (rows.cumsum(1) <= limit)).reshape(-1)


def _out_of_reach(
    model: nn.Module, groups: Sequence[Group], left: Sequence[LeftAlone], skip: Collection[str]
) -> list[LeftAlone]:
    """Where dead units are that belong to no group, and why."""
    stays = [entry for entry in left if any(has_dead(model.get_submodule(path), "out") for path in entry.names)]
    known = {path for group in groups for path in group.writers} | {path for entry in left for path in entry.names}
    return stays + [
        LeftAlone(
            (path or "the network",), "they are outputs of the network, or go where no layer can be seen to read them"
        )
        for path, module in model.named_modules()
        if path not in {*known, *skip}
        and not any(path.startswith(f"{other}.") for other in known)
        and has_dead(module, "out")
        and size_of(module, "out") > 1
    ]


def _each_alone(model: nn.Module, search: _Search, batches: Sequence[Batch], run: Run) -> dict[str, Group | str]:
    """For the groups, by name, that cannot lose their units by themselves: why, or the group with which it can be done.

    A number of a user's module may have to be lowered with them.
    """
    verdicts: dict[str, Group | str] = {}
    for group, gone in search.lost:
        found = _runnable(model, group, gone, run)
        if isinstance(found, Group):
            alone = _Search(deepcopy(model), [found], batches, run)
            cut_keeps(alone.model, alone.keeps)
            same = _same(model, alone.model, batches, run)
            found = found if same else "what they say is used by more than the layers that read them"
        if found is not group:
            verdicts[group.name] = found
    return verdicts


def _runnable(model: nn.Module, group: Group, gone: Tensor, run: Run) -> Group | str:
    """The group, with numbers that have to be lowered with it, or why these units of it cannot be removed."""
    mask = gone.to(next(model.parameters()).device)
    fault = fault_of(model, keeps_of([group], [mask]), run)
    if fault is None:
        return group
    if fault.startswith(DOES_NOT_RUN):
        for wider in with_attributes(model, group):
            if fault_of(model, keeps_of([wider], [mask]), run) is None:
                return wider
    return fault


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
