"""Which channels no weight feeds, and which none reads.

    unread    W_next[:, i] = 0  for every layer that reads the channel
    unfed     W[i, :] = 0       for every layer that writes it

A depthwise convolution neither feeds nor reads: it passes on.

Source: Han et al. 2015, Learning both weights and connections, sec. 3.5. Cost: one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress_core.channels.coupling import Group, Member
from compress_core.channels.cutting import CannotCut, Side, channel_powers, depthwise

_GATES = {"LSTM": 4, "GRU": 3}


def readers(model: nn.Module, group: Group) -> list[Member]:
    """The layers that read the channels of a group with weights."""
    return [member for member in group.members if member.place[1] == "in" and _has_weights(model, member)]


def writers(model: nn.Module, group: Group) -> list[Member]:
    """The layers that write the channels of a group with weights."""
    return [member for member in group.members if member.place[1] == "out" and _has_weights(model, member)]


def _has_weights(model: nn.Module, member: Member) -> bool:
    module = model.get_submodule(member.place[0])
    return isinstance(module, nn.Linear | _ConvNd | nn.Embedding) and not depthwise(module)


def never_read(model: nn.Module, group: Group) -> Tensor:
    """The channels of a group that layers read, all of them with zeros, (group size,)."""
    return _silent(model, group, readers(model, group))


def never_fed(model: nn.Module, group: Group) -> Tensor:
    """The channels of a group that layers write, all of them with zeros, (group size,)."""
    return _silent(model, group, writers(model, group))


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


def has_dead(module: nn.Module, *sides: Side) -> bool:
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
