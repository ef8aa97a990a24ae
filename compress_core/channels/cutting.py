"""The channels of one layer: their norms, their zeros, and their removal.

A layer has channels on its `out` side (the rows of a weight, its bias; all of a BatchNorm) and on its `in`
side (the columns of a weight). A convolution with g groups reads a weight of shape (out, in/g, ...) as
(g, out/g, in/g, ...): its channel i on the `in` side is column i mod in/g of block i div in/g, and the same
number of channels has to stay in every block. A depthwise convolution has one channel for both sides.

Source: Li et al. 2017, Pruning filters for efficient convnets, sec. 3.1 (a filter goes together with the
columns that read it).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from compress_core.channels.mapping import map_of, moves_channels

Side = Literal["out", "in"]


ACROSS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.MultiheadAttention, nn.RNNBase)
"""Layers whose result for one channel depends on how many there are."""


class CannotCut(Exception):
    """Why the channels of a layer cannot be removed."""


def depthwise(module: nn.Module) -> bool:
    """Whether every channel of a convolution is read and written by itself."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def blocks_of(module: nn.Module) -> int:
    """Into how many blocks a layer divides its channels, each of which has to keep the same number."""
    return module.groups if isinstance(module, _ConvNd) and not depthwise(module) else 1


def axes(module: nn.Module, side: Side) -> dict[str, int]:
    """The tensors of a layer that have its channels on an axis, and which axis that is.

    Raises:
        CannotCut: the type of layer is not known, or not with these arguments.
    """
    match module:
        case _ if moves_channels(module):
            return {}
        case _ConvNd() if module.transposed and module.groups > 1:
            raise CannotCut("a transposed convolution has groups")
        case _ConvNd() | nn.Linear():
            across = int(isinstance(module, _ConvNd) and module.transposed)
            found = {"weight": across, "bias": 0} if side == "out" else {"weight": 1 - across}
        case _BatchNorm() | _InstanceNorm():
            found = {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0}
        case nn.PReLU():
            found = {"weight": 0} if module.num_parameters > 1 else {}
        case nn.Embedding() if side == "out":
            found = {"weight": 1}
        case _:
            fault = "works across channels" if isinstance(module, ACROSS) else "is not known"
            raise CannotCut(f"{type(module).__name__} {fault}")
    own = {**module._parameters, **module._buffers}
    if lost := [name for name in found if name not in own]:
        raise CannotCut(f"{type(module).__name__} computes its {lost[0]}")
    return {name: axis for name, axis in found.items() if own[name] is not None}


def size_of(module: nn.Module, side: Side) -> int:
    """How many channels a layer has on a side; 0 if it has the same number for any."""
    for name, axis in axes(module, side).items():
        grouped = side == "in" and name == "weight" and isinstance(module, _ConvNd) and not depthwise(module)
        return int(getattr(module, name).shape[axis]) * (blocks_of(module) if grouped else 1)
    if moves_channels(module):
        inputs, sources = map_of(module)
        return len(sources) if side == "out" else inputs
    return int(getattr(module, "num_features", 0))


def channel_powers(module: nn.Module, side: Side, power: int) -> Tensor:
    """The sum of |w|^power over the weight of each channel of a convolution or a linear layer, (channels,)."""
    weight, groups = _by_blocks(module, side)
    summed = weight.detach().abs().pow(power)
    axis = _axis(module, side)
    others = [other for other in range(1, summed.ndim) if other != axis]
    summed = summed.sum(others) if others else summed
    return summed.reshape(-1) if groups > 1 else summed.sum(0)


@torch.no_grad()
def zero_channels(module: nn.Module, side: Side, keep: Tensor) -> None:
    """Set the parameters of every channel that is not in `keep`, a mask (channels,), to zero, in place."""
    for name, axis in axes(module, side).items():
        tensor = getattr(module, name)
        if side == "in" and blocks_of(module) > 1:
            blocks, groups = _by_blocks(module, side)
            blocks.masked_fill_(~keep.reshape(groups, 1, -1, *[1] * (blocks.ndim - 3)), 0)
        elif isinstance(tensor, nn.Parameter):
            zero_slices(tensor, axis, keep)


@torch.no_grad()
def zero_slices(tensor: Tensor, axis: int, keep: Tensor) -> None:
    """Set the slices of a tensor along an axis that are not in `keep` to zero, in place."""
    tensor.index_fill_(axis, (~keep).nonzero().flatten(), 0)


@torch.no_grad()
def cut_channels(module: nn.Module, side: Side, keep: Tensor) -> None:
    """Remove every channel that is not in `keep`, a mask (channels,), from a layer, in place.

    Raises:
        CannotCut: the blocks of a grouped convolution would keep different numbers of channels.
    """
    kept = keep.nonzero().flatten()
    whole = depthwise(module)
    blocks = blocks_of(module)
    counts = keep.reshape(blocks, -1).sum(1)
    if bool((counts != counts[0]).any()):
        raise CannotCut("the blocks of a grouped convolution would keep different numbers of channels")
    for name, axis in axes(module, side).items():
        tensor = getattr(module, name)
        if name == "weight" and side == "in" and blocks > 1:
            columns = keep.reshape(blocks, -1).nonzero()[:, 1].reshape(blocks, -1)
            pieces = tensor.reshape(blocks, -1, *tensor.shape[1:])
            value = torch.cat([piece.index_select(1, own) for piece, own in zip(pieces, columns, strict=True)])
        else:
            value = tensor.index_select(axis, kept)
        _put(module, name, value)
    _count(module, side, len(kept), whole=whole)
    if callable(narrow := getattr(module, f"narrow_{side}", None)):
        narrow(kept)


def cut_slices(model: nn.Module, name: str, axis: int, keep: Tensor) -> None:
    """Remove the slices of a parameter along an axis that are not in `keep`, in place of the parameter."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    _put(module, own, model.get_parameter(name).detach().index_select(axis, keep.nonzero().flatten()))


def attribute(model: nn.Module, name: str) -> int:
    """A module's attribute by its qualified name, such as `encoder.attention.num_heads`.

    Raises:
        AttributeError: there is none.
    """
    path, _, own = name.rpartition(".")
    return int(getattr(model.get_submodule(path), own))


def lower_count(model: nn.Module, name: str, keep: Tensor) -> None:
    """Lower an attribute that counts channels, or a multiple of them, by the share that does not stay."""
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, attribute(model, name) * int(keep.sum()) // len(keep))


def _axis(module: nn.Module, side: Side) -> int:
    """The axis of the channels in `_by_blocks`."""
    return axes(module, side)["weight"] + 1


def _by_blocks(module: nn.Module, side: Side) -> tuple[Tensor, int]:
    """A view of the weight as (blocks, ...), one block unless the `in` side of a convolution has groups."""
    weight = getattr(module, "weight")  # noqa: B009 - the type of the module is any
    groups = blocks_of(module) if side == "in" else 1
    return weight.view(groups, weight.shape[0] // groups, *weight.shape[1:]), groups


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        module._parameters[name] = nn.Parameter(value.detach().contiguous(), requires_grad=old.requires_grad)
    else:
        module._buffers[name] = value.contiguous()


def _count(module: nn.Module, side: Side, count: int, *, whole: bool) -> None:
    """Write the new number of channels into a layer's attributes."""
    match module:
        case _ConvNd():
            for name in ("in_channels", "out_channels", "groups") if whole else (f"{side}_channels",):
                setattr(module, name, count)
        case nn.Linear():
            setattr(module, f"{side}_features", count)
        case _BatchNorm() | _InstanceNorm():
            module.num_features = count
        case nn.PReLU() if module.num_parameters > 1:
            module.num_parameters = count
        case nn.Embedding():
            module.embedding_dim = count
