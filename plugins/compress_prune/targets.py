"""Which channels go, so that a share of the network's parameters, MACs or time goes.

    cost(g) = c_0 + sum over t of  c_t * prod over the sides p of t of (1 - sum_k lost[p, k] g_k)
    g       = plan(level) with the least level for which  cost(plan(level)) <= (1 - amount) * cost(0)

g_k is 1 if channel k goes, and lost[p, k] the share of the channels on a side p of a layer that go with it. For
parameters, t is a tensor and c_t its entries; for MACs, t is a convolution or linear layer and c_t its multiply-adds.
`plan` is any rule that takes more channels at a higher level in [0, 1]: a uniform share, a ranking of the whole
network, a common loss. Rounding makes groups lose channels together, or more than the level wants: going back to lower
levels, groups get back what they had there, as long as the target is met. It is never fallen short of, and exceeded
by less than one step of one group.

Whether the formula holds for a network is found out by counting a network that has lost half of its channels; where
it does not (attention by hand, weights used twice), every plan is counted on a network that is really cut. Time is
always measured on a network that is really cut, beside the dense one.

Source: He et al. 2018, AMC, sec. 3.3 (a budget of MACs or of measured time, met exactly); Yang et al. 2018, NetAdapt,
sec. 3 (time measured on the device rather than derived).
Cost: one forward pass of two examples, then microseconds per plan; with time, at most eight measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress_core.channels.coupling import Group, Place, cut_keeps, keeps_of
from compress_core.channels.cutting import axes
from compress_core.errors import ModelError
from compress_core.measure import counts
from compress_core.modes import evaluating, unfused

if TYPE_CHECKING:
    from compress_core.run import Example, Run

Counted = Literal["parameters", "macs"]
Masks = Sequence[Tensor]
"""For each group a mask (size,), True at the channels that go."""
Plan = Callable[[float], list[Tensor]]
"""The masks at a level in [0, 1]; never fewer channels at a higher one."""
Cost = Callable[[Masks], float]
"""What a network costs without these channels."""

SIDES = ("out", "in")
"""The sides of layers; other places of a group are bare parameters and attributes that count channels."""
HALVINGS = 48
"""Steps of the bisection of a level: finer than the slope by which `sensitivity` tells shares of one cost apart."""
STEPS_BACK = 16
"""At how many lower levels groups may have kept more than rounding has left them."""
MEASUREMENTS = 7
"""Networks that are timed on the way to a target latency, after the smallest one."""


class CannotReach(Exception):
    """The share that can go at most, where a larger one is wanted."""

    def __init__(self, most: float) -> None:
        super().__init__(f"{most:.1%} at most")
        self.most = most


@dataclass(frozen=True)
class Formula:
    """The cost of a network as a function of the channels that its groups lose."""

    fixed: float
    """The cost of all that keeps its size."""
    dense: Tensor
    """The cost of each term in the dense network, (terms,)."""
    sides: Tensor
    """The sides on which a term depends, (terms, 2 or more); filled up with the last side, which loses nothing."""
    lost: Tensor
    """The share of a side that goes with each channel, (sides, channels of all groups)."""

    def __call__(self, gone: Masks) -> float:
        """The cost without these channels."""
        kept = 1 - self.lost @ torch.cat([mask.cpu() for mask in gone]).double()
        return self.fixed + float((self.dense * kept[self.sides].prod(1)).sum())


def formula(total: float, terms: Sequence[tuple[float, Sequence[Place]]], groups: Sequence[Group]) -> Formula:
    """The formula of a network.

    Args:
        total: what the dense network costs.
        terms: what parts of it cost, each with the sides on whose channels it depends, one after the other.
        groups: whose channels go.
    """
    rows: dict[Place, int] = {}
    for group in groups:
        for member in group.members:
            rows.setdefault(member.place, len(rows))
    lost = torch.zeros(len(rows) + 1, sum(group.size for group in groups), dtype=torch.float64)
    for group, columns in zip(groups, torch.split(lost, [group.size for group in groups], dim=1), strict=True):
        for member in group.members:
            columns[rows[member.place]] += torch.bincount(member.root, minlength=group.size) / member.size
    width = max((len(places) for _, places in terms), default=1)
    sides = torch.full((len(terms), width), len(rows))
    for row, (_, places) in zip(sides, terms, strict=True):
        row[: len(places)] = torch.tensor([rows[place] for place in places])
    dense = torch.tensor([cost for cost, _ in terms], dtype=torch.float64)
    return Formula(total - float(dense.sum()), dense, sides, lost)


def parameter_terms(model: nn.Module, groups: Sequence[Group]) -> list[tuple[float, list[Place]]]:
    """The entries of every parameter that loses some, with the sides on which they depend."""
    found: dict[str, list[Place]] = {}
    for place in _places(groups):
        path, side, _ = place
        if side == "parameter":
            found.setdefault(path, []).append(place)
            continue
        if side not in SIDES:
            continue
        layer = model.get_submodule(path)
        for name in axes(layer, "out" if side == "out" else "in"):
            if isinstance(getattr(layer, name), nn.Parameter):
                found.setdefault(f"{path}.{name}", []).append(place)
    return [(float(model.get_parameter(name).numel()), places) for name, places in found.items()]


def mac_terms(model: nn.Module, groups: Sequence[Group], example: Example) -> list[tuple[float, list[Place]]]:
    """The MACs of every convolution and linear layer that loses some, for one example, with their sides."""
    sides: dict[str, list[Place]] = {}
    for place in _places(groups):
        if place[1] in SIDES and isinstance(model.get_submodule(place[0]), _ConvNd | nn.Linear):
            sides.setdefault(place[0], []).append(place)
    macs = dict.fromkeys(sides, 0.0)
    size = len(next(value for value in [*example[0], *example[1].values()] if isinstance(value, Tensor)))

    def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def count(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
            macs[path] += macs_of(layer, inputs[0] if inputs else keywords["input"], output) / size

        return count

    handles = [model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in sides]
    try:
        with evaluating(model), unfused(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*example[0], **example[1])
    finally:
        for handle in handles:
            handle.remove()
    return [(macs[path], places) for path, places in sides.items()]


def macs_of(layer: nn.Module, given: Tensor, output: Tensor) -> float:
    """The MACs of one call: every entry of the output (of the input, if transposed) meets one row of the weight."""
    if isinstance(layer, _ConvNd):
        return (given if layer.transposed else output).numel() * prod(layer.weight.shape[1:])
    assert isinstance(layer, nn.Linear)
    return output.numel() * layer.in_features


def cost_of(model: nn.Module, groups: Sequence[Group], of: Counted, run: Run) -> Cost:
    """The parameters or the MACs of a network without some channels: by the formula where it is exact."""
    known: dict[tuple[int, ...], float] = {}

    def real(gone: Masks) -> float:
        key = tuple(int(keep.sum()) for keep in keeps_of(groups, gone).values())
        if key not in known:
            cut = without(model, groups, gone)
            with naming(groups):
                found = counts(cut, run.example)
            known[key] = float(found.parameters if of == "parameters" else found.macs)
        return known[key]

    try:
        terms = parameter_terms(model, groups) if of == "parameters" else mac_terms(model, groups, run.example)
        found = formula(real(nothing(groups)), terms, groups)
    except (AttributeError, StopIteration):  # layers that give no tensor, an example without one
        return real
    probe = [_every_other(group) for group in groups]
    return found if abs(found(probe) - real(probe)) <= 1 + 1e-9 * found(probe) else real


def without(model: nn.Module, groups: Sequence[Group], gone: Masks) -> nn.Module:
    """A copy of the network without these channels."""
    copy = deepcopy(model)
    cut_keeps(copy, keeps_of(groups, gone))
    return copy


@contextmanager
def naming(groups: Sequence[Group]) -> Iterator[None]:
    """Tell in a `ModelError` that the network does not run without the channels on the way to a target."""
    try:
        yield
    except RuntimeError as error:
        raise ModelError(
            f"the network does not run with so few channels of {', '.join(group.name for group in groups)}: {error}",
            mend="name in `skip` the layers that must keep more, or aim at `of: count`",
        ) from error


def nothing(groups: Sequence[Group]) -> list[Tensor]:
    """The masks of a network that loses no channel."""
    return [torch.zeros(group.size, dtype=torch.bool) for group in groups]


def solved(plan: Plan, cost: Cost, amount: float, dense: float) -> list[Tensor]:
    """Which channels go, so that `amount` of the cost goes, and no more than rounding wants.

    Args:
        plan: which channels go at a level.
        cost: what the network costs without them.
        amount: the share that goes, in (0, 1).
        dense: what it is a share of: the cost of the network that loses nothing.

    Raises:
        CannotReach: more channels than may go would have to.
    """
    target = (1 - amount) * dense * (1 + 1e-12)
    if cost(plan(0.0)) <= target:
        return plan(0.0)
    if (least := cost(plan(1.0))) > target:
        raise CannotReach(1 - least / dense)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(plan(middle)) <= target else (middle, high)
    chosen = _given_back(plan(low), plan(high), cost, target)
    for step in range(1, STEPS_BACK):
        chosen = _given_back(plan(high * (1 - step / STEPS_BACK)), chosen, cost, target)
    return chosen


def solved_by_measuring(plan: Plan, ratio: Cost, amount: float) -> tuple[list[Tensor], float]:
    """The same for a cost that is measured, as a ratio to the dense network's: few measurements, none twice.

    Returns:
        which channels go, and the ratio that was measured without them.

    Raises:
        CannotReach: even without all channels that may go.
    """
    measured: dict[tuple[bool, ...], float] = {}

    def meets(chosen: Masks) -> bool:
        if _key(chosen) not in measured:
            measured[_key(chosen)] = ratio(chosen)
        return measured[_key(chosen)] <= 1 - amount

    low, high = 0.0, 1.0
    if not meets(plan(high)):
        raise CannotReach(1 - measured[_key(plan(high))])
    for _ in range(HALVINGS):
        if len(measured) > MEASUREMENTS:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if meets(plan(middle)) else (middle, high)
    fewer, more = plan(low), plan(high)
    differing = _differing(fewer, more)
    few, many = 0, len(differing)
    while many - few > 1 and len(measured) <= MEASUREMENTS:
        some = (few + many) // 2
        few, many = (few, some) if meets(_mixed(fewer, more, differing[:some])) else (some, many)
    best = _mixed(fewer, more, differing[:many])
    return best, measured[_key(best)]


def _key(masks: Masks) -> tuple[bool, ...]:
    return tuple(torch.cat(list(masks)).tolist())


def _given_back(fewer: Masks, more: Masks, cost: Cost, target: float) -> list[Tensor]:
    """`more`, with as many groups as can be on their channels in `fewer`: first those that cost least."""
    chosen = list(more)

    def back(index: int) -> list[Tensor]:
        return [fewer[at] if at == index else mask for at, mask in enumerate(chosen)]

    costs = {index: cost(back(index)) for index in _differing(fewer, more)}
    for index in sorted(costs, key=lambda at: costs[at]):
        if costs[index] <= target and cost(back(index)) <= target:
            chosen = back(index)
    return chosen


def _differing(fewer: Masks, more: Masks) -> list[int]:
    """The groups that lose more."""
    return [
        index for index, (one, other) in enumerate(zip(fewer, more, strict=True)) if int(one.sum()) < int(other.sum())
    ]


def _mixed(fewer: Masks, more: Masks, taken: Sequence[int]) -> list[Tensor]:
    """`fewer`, with some groups as in `more`."""
    return [more[index] if index in taken else mask for index, mask in enumerate(fewer)]


def _every_other(group: Group) -> Tensor:
    """A mask of every second channel of each block."""
    mask = torch.zeros(group.blocks, group.size // group.blocks, dtype=torch.bool)
    mask[:, 1::2] = True
    return mask.reshape(-1)


def _places(groups: Sequence[Group]) -> list[Place]:
    """Every place of the groups once."""
    return list(dict.fromkeys(member.place for group in groups for member in group.members))
