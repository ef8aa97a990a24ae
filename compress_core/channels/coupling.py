"""Which channels of which layers have to go together: coupled groups, as data.

A channel of a convolution is read by the columns of the layers behind it, shares an addition with the same
channel of other convolutions, and has its own BatchNorm. The dependency graph of torch-pruning finds these
couplings from one traced forward pass. Here they become plain data: for each layer and side, which of its
channels belong to which channel of the group. The data hold for any copy of the network, so that channels
can be zeroed while it trains and removed when it has.

Left out: groups that reach the network's output, a shared weight, a layer that works across channels
(LayerNorm, attention, LSTM), or a layer that the user skips.

Source: Fang et al. 2023, DepGraph: Towards any structural pruning, sec. 3.2 and 3.3 (the graph, the groups).
Cost: one forward pass of two examples and one walk of the graph per group.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress_core.channels.cutting import (
    CannotCut,
    Side,
    attribute,
    axes,
    blocks_of,
    cut_channels,
    cut_slices,
    depthwise,
    lower_count,
    size_of,
    zero_channels,
    zero_slices,
)
from compress_core.channels.mapping import joined, map_of, moves_channels
from compress_core.errors import ModelError, place_of
from compress_core.weights import shared_parameters

if TYPE_CHECKING:
    from compress_core.run import Run

Place = tuple[str, str, int]
"""A layer's path and side, or a bare parameter's name, `parameter` and its axis, or the name of a module's attribute
that counts channels, or a multiple of them, and `attribute`."""


@dataclass(frozen=True)
class Member:
    """The channels that a group has in one layer."""

    place: Place
    size: int
    """Channels of the layer on this side, those of other groups included."""
    index: Tensor
    """Channels of the layer, (k,)."""
    root: Tensor
    """For each of them the channel of the group, (k,)."""


@dataclass(frozen=True)
class Group:
    """Channels that go together in all members."""

    name: str
    """The path of the layer whose output channels are the channels of the group."""
    size: int
    blocks: int
    """Into how many equal blocks the channels are divided; each keeps the same number."""
    members: tuple[Member, ...]
    writers: tuple[str, ...]
    """The paths of the layers with weights whose output channels they are."""


@dataclass(frozen=True)
class LeftAlone:
    """Channels that cannot be pruned, and why."""

    names: tuple[str, ...]
    reason: str


Keeps = dict[Place, Tensor]


def keeps_of(groups: Sequence[Group], gone: Sequence[Tensor]) -> Keeps:
    """For each place a mask of the channels that stay, given a mask (group size,) of what is gone per group."""
    found: Keeps = {}
    for group, mask in zip(groups, gone, strict=True):
        for member in group.members:
            keep = found.setdefault(member.place, torch.ones(member.size, dtype=torch.bool, device=mask.device))
            lost = mask[member.root.to(mask.device)]
            keep[member.index.to(mask.device)[lost]] = False
    return found


def zero_keeps(model: nn.Module, keeps: Keeps) -> None:
    """Zero whatever does not stay, in place: the network then computes what it will compute without."""
    for (path, side, axis), keep in keeps.items():
        if side == "parameter":
            zero_slices(model.get_parameter(path), axis, keep)
        elif side != "attribute":
            zero_channels(model.get_submodule(path), _side(side), keep)


def cut_keeps(model: nn.Module, keeps: Keeps) -> None:
    """Remove whatever does not stay, in place.

    Raises:
        CannotCut: a layer cannot lose these channels.
    """
    for (path, side, axis), keep in keeps.items():
        if bool(keep.all()):
            continue
        if side == "parameter":
            cut_slices(model, path, axis, keep)
        elif side == "attribute":
            lower_count(model, path, keep)
        else:
            cut_channels(model.get_submodule(path), _side(side), keep)


def misfit(model: nn.Module, keeps: Keeps) -> str | None:
    """The first place that a network does not have, or not with as many channels; None if all is there."""
    for (path, side, axis), keep in keeps.items():
        try:
            if side == "parameter":
                size = model.get_parameter(path).shape[axis]
            elif side == "attribute":
                size = len(keep) if attribute(model, path) % len(keep) == 0 else 0
            else:
                size = size_of(model.get_submodule(path), _side(side))
        except (AttributeError, CannotCut):
            return path
        if size != len(keep):
            return path
    return None


def coupled_groups(model: nn.Module, run: Run, skip: Collection[str] = ()) -> tuple[list[Group], list[LeftAlone]]:
    """The groups of a network as torch-pruning sees them, and what is left alone; `proof` has to confirm them.

    Args:
        model: the network; it stays as it is.
        run: gives the example and tells the logits in the output.
        skip: paths of layers whose output channels shall stay.

    Raises:
        ModelError: the network cannot be traced.
    """
    copy = deepcopy(model).eval()
    for parameter in copy.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    graph = _traced(copy, run)
    shared = shared_parameters(copy)
    shared |= {name.rpartition(".")[0] for name in shared}
    groups: list[Group] = []
    left: list[LeftAlone] = []
    for root, coupled in _coupled(graph):
        name = graph._module2name[root]
        if coupled is None:
            left.append(LeftAlone((name,), "torch-pruning cannot follow them"))
            continue
        if any(not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in coupled):
            continue
        names = tuple(sorted(_writers(graph, coupled)))
        try:
            group = _group(graph, name, coupled, names)
            if taken := [path for path in names if path in skip]:
                raise CannotCut(f"{taken[0]} shall keep its channels")
            if tied := [member.place[0] for member in group.members if member.place[0] in shared]:
                raise CannotCut(f"{tied[0]} shares its weight")
            if group.size == group.blocks > 1:
                raise CannotCut("each of the blocks of a grouped convolution has one channel")
        except CannotCut as error:
            left.append(LeftAlone(names, str(error)))
            continue
        if group.size > 1:
            groups.append(group)
    groups, stay = joined(copy, groups)
    left += stay
    named = {name for entry in left for name in entry.names}
    for path, module in copy.named_modules():
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and path not in named:
            left.append(LeftAlone((path,), f"{type(module).__name__} works across channels"))
    return groups, left


def _side(side: str) -> Side:
    return "out" if side == "out" else "in"


def _traced(copy: nn.Module, run: Run) -> torch_pruning.DependencyGraph:
    arguments, keywords = run.example
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                copy,
                example_inputs=(arguments, keywords),
                forward_fn=lambda network, inputs: network(*inputs[0], **inputs[1]),
                output_transform=run.task.logits,
                customized_pruners={type(module): _Moving() for module in copy.modules() if moves_channels(module)},
                verbose=False,
            )
    except Exception as error:
        raise ModelError(
            f"the network's channels cannot be traced: {type(error).__name__}: {error}{place_of(error)}",
            mend="work on single weights; channels need a forward that torch's autograd can follow",
        ) from error
    return graph


class _Moving(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """Tells torch-pruning of a module that moves channels: those that it reads and those that it gives are apart."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        """Nothing; `joined` says what goes together."""
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        """Nothing; `joined` says what goes together."""
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        """How many channels it gives."""
        return len(map_of(layer)[1])

    def get_in_channels(self, layer: nn.Module) -> int:
        """How many channels it reads."""
        return map_of(layer)[0]


def _coupled(
    graph: torch_pruning.DependencyGraph,
) -> Iterator[tuple[nn.Module, torch_pruning.Group | None]]:
    """Every convolution or linear layer with all that its output channels are coupled with, each group once."""
    visited: set[nn.Module] = set()
    for root in list(graph.module2node):
        if not isinstance(root, _ConvNd | nn.Linear) or root in visited:
            continue
        pruner = graph.get_pruner_of_module(root)
        try:
            found = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(pruner.get_out_channels(root))))
        except Exception:
            yield root, None
            continue
        visited.update(dep.target.module for dep, _ in found if graph.is_out_channel_pruning_fn(dep.handler))
        yield root, found


def _writers(graph: torch_pruning.DependencyGraph, coupled: torch_pruning.Group) -> set[str]:
    """The layers with weights whose output channels a group has."""
    return {
        graph._module2name[dep.target.module]
        for dep, _ in coupled
        if graph.is_out_channel_pruning_fn(dep.handler)
        and isinstance(dep.target.module, _ConvNd | nn.Linear | nn.Embedding | nn.MultiheadAttention | nn.RNNBase)
    }


def _group(
    graph: torch_pruning.DependencyGraph, name: str, coupled: torch_pruning.Group, writers: tuple[str, ...]
) -> Group:
    size = len(coupled[0].idxs)
    members = [_member(graph, item) for item in coupled if graph._module2name.get(item.dep.target.module) is not None]
    if unknown := [member for member in members if member.size and int(member.index.max()) >= member.size]:
        raise CannotCut(f"{unknown[0].place[0]} has fewer channels than are added to it")
    blocks = 1
    for member in members:
        if member.place[1] == "parameter":
            continue
        layer = graph.model.get_submodule(member.place[0])
        if (own := blocks_of(layer)) > 1:
            if member.size != size or not torch.equal(member.index.sort().values, torch.arange(size)):
                raise CannotCut(f"the groups of {member.place[0]} do not lie on its channels")
            blocks = lcm(blocks, own)
    return Group(name, size, blocks, tuple(member for member in members if member.size), writers)


def _member(graph: torch_pruning.DependencyGraph, item: torch_pruning.dependency.GroupItem) -> Member:
    target = item.dep.target
    index, root = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
    if isinstance(target.module, nn.Parameter):
        name = graph._param_to_name[target.module]
        axis = target.pruning_dim % target.module.ndim
        return Member((name, "parameter", axis), target.module.shape[axis], index, root)
    side: Side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
    if isinstance(target.module, _ConvNd) and target.module.groups == target.module.out_channels > 1:
        if not depthwise(target.module):
            raise CannotCut(f"{graph._module2name[target.module]} reads several channels in each group")
        side = "out"
    axes(target.module, side)
    return Member((graph._module2name[target.module], side, 0), size_of(target.module, side), index, root)
