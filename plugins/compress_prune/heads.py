"""Attention heads as groups of channels: which rows and columns belong to which head, and which numbers count heads.

    y = sum over h of softmax(Q W_h^q (K W_h^k)^T / sqrt(d)) V W_h^v W_h^o + b

A head whose rows of W^q, W^k and W^v and columns of W^o are zero adds nothing, and does so when they are gone. In a
group the head is the channel: its members are those rows and columns, the attributes that count heads, and bare
parameters with an axis of one entry per head. torch's own attention is taken apart first (`compress_core.attention`).
In attention written out by hand the layers are found by the order in which they run before the one that reads W
channels, W a multiple of the heads; which layers, which order of channels and which attributes are right is tried, and
decided by the proof that the network without half of the heads computes what it computes with zeros in their place.

Source: Michel et al. 2019, Are Sixteen Heads Really Better than One?, sec. 2.2 and 3.1 (heads masked and removed);
Voita et al. 2019, Analyzing Multi-Head Self-Attention, sec. 5.
Cost: a proof for all attentions together if the first guess is right everywhere, else up to a dozen for each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_core.attention import cannot_unpack
from compress_core.channels.coupling import Group, LeftAlone, Member
from compress_core.channels.proof import proven
from compress_core.modes import evaluating

if TYPE_CHECKING:
    from compress_core.run import Run

COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
"""Attributes by which modules say how many heads they have."""
WIDTHS = ("head_dim", "attention_head_size", "dim_head", "d_head")
"""Attributes by which they say how wide a head is."""
NOT_FOUND = "the layers that compute its heads are not found"


def packed_attention(model: nn.Module, skip: Collection[str] = ()) -> tuple[list[str], list[LeftAlone]]:
    """The paths of torch's attentions that can be taken apart, and the others with the reason."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            places.setdefault(id(module), []).append(path)
    found, left = [], []
    for paths in places.values():
        module = model.get_submodule(paths[0])
        assert isinstance(module, nn.MultiheadAttention)
        if kept := [path for path in paths if path in skip]:
            left.append(LeftAlone(tuple(paths), f"{kept[0]} shall keep its heads"))
        elif len(paths) > 1 or not paths[0]:
            left.append(LeftAlone(tuple(paths), "it stands in several places, or is the network"))
        elif reason := cannot_unpack(module):
            left.append(LeftAlone(tuple(paths), reason))
        elif module.num_heads > 1:
            found.append(paths[0])
    return found, left


def head_groups(model: nn.Module, run: Run, skip: Collection[str] = ()) -> tuple[list[Group], list[LeftAlone]]:
    """A proven group of heads for each attention, and what is left alone.

    Args:
        model: the network, torch's attention taken apart; it stays as it is.
        run: gives the example.
        skip: paths of attentions that keep their heads.
    """
    left = packed_attention(model, skip)[1]
    order = _call_order(model, run)
    guesses: list[list[Group]] = []
    for attention in _attentions(model):
        if attention.path in skip:
            left.append(LeftAlone((attention.path,), f"{attention.path} shall keep its heads"))
        elif found := list(_guesses(model, attention, order)):
            guesses.append(found)
        else:
            left.append(LeftAlone((attention.path,), NOT_FOUND))
    right, wrong = proven(model, [found[0] for found in guesses], run)
    if wrong:
        best: list[Group] = []
        for found in guesses:
            proofs = (proven(model, [group], run) for group in found)
            one, fault = next((proof for proof in proofs if proof[0]), proven(model, found[:1], run))
            best += one
            left += fault
        right, wrong = proven(model, best, run)
        left += wrong
    return right, left


@dataclass(frozen=True)
class _Attention:
    """A module that says how many heads it has."""

    path: str
    heads: int
    counts: tuple[str, ...]
    """The names of its attributes that say so."""
    width: int | None
    """Of a head, if it says so."""


def _attentions(model: nn.Module) -> Iterator[_Attention]:
    """The innermost modules with several heads."""
    found = {}
    for path, module in model.named_modules():
        counts = {name: value for name in COUNTS if _is_count(value := getattr(module, name, None))}
        if counts and not isinstance(module, nn.MultiheadAttention):
            heads = max(counts.values())
            names = tuple(name for name, value in counts.items() if value == heads)
            widths = [value for name in WIDTHS if _is_count(value := getattr(module, name, None))]
            found[path] = _Attention(path, heads, names, widths[0] if widths else None)
    for path, attention in found.items():
        if not any(other != path and other.startswith(f"{path}." if path else "") for other in found):
            yield attention


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _guesses(model: nn.Module, attention: _Attention, order: Sequence[str]) -> Iterator[Group]:
    """Groups that may be the heads of an attention, the likeliest first."""
    module = model.get_submodule(attention.path)
    for reader, writers in _readings(model, attention, order):
        wide = _linear(model, reader).in_features
        counted = [_name(attention.path, name) for name in attention.counts]
        widths = [
            _name(attention.path, name)
            for name, value in vars(module).items()
            if name not in attention.counts and _is_count(value) and value in {wide, 3 * wide}
        ]
        for attributes, apart in product((counted, counted + widths, [], widths), (True, False)):
            if not apart and all(_linear(model, path).out_features == wide for path in writers):
                continue
            if widths or attributes in (counted, []):
                yield _group(model, attention, reader, writers, attributes, apart=apart)


def _readings(model: nn.Module, attention: _Attention, order: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The layer that may read all heads, and those that may write queries, keys and values; the last layer first."""
    inside = [path for path in order if _is_below(path, attention.path)]
    parent = attention.path.rpartition(".")[0]
    behind = [path for path in order[order.index(inside[-1]) + 1 :] if _is_below(path, parent)] if inside else []
    for reader in [*reversed(inside), *behind[:1]]:
        wide = _linear(model, reader).in_features
        if wide % attention.heads or attention.width not in {None, wide // attention.heads}:
            continue
        writers: list[str] = []
        parts = 0
        for path in reversed(inside[: inside.index(reader)] if reader in inside else inside):
            rows = _linear(model, path).out_features
            if parts < 3 and rows in {wide, 2 * wide, 3 * wide}:
                writers.append(path)
                parts += rows // wide
        if parts == 3:
            yield reader, tuple(reversed(writers))


def _group(
    model: nn.Module,
    attention: _Attention,
    reader: str,
    writers: tuple[str, ...],
    attributes: Sequence[str],
    *,
    apart: bool,
) -> Group:
    """A group of heads.

    Args:
        model: the network.
        attention: the module.
        reader: the layer that reads all heads.
        writers: those that write queries, keys and values.
        attributes: what has to be lowered.
        apart: whether a layer that writes several of them writes all queries first, rather than head by head.
    """
    heads, wide = attention.heads, _linear(model, reader).in_features
    members = [_member((reader, "in", 0), torch.arange(wide) // (wide // heads))]
    for path in writers:
        rows = torch.arange(rows_ := _linear(model, path).out_features)
        root = rows % wide // (wide // heads) if apart else rows // (rows_ // heads)
        members.append(_member((path, "out", 0), root))
    for name, parameter in model.get_submodule(attention.path).named_parameters(recurse=False):
        if heads in parameter.shape:
            place = (_name(attention.path, name), "parameter", list(parameter.shape).index(heads))
            members.append(_member(place, torch.arange(heads)))
    members += [_member((name, "attribute", 0), torch.arange(heads)) for name in attributes]
    return Group(attention.path, heads, 1, tuple(members), (attention.path,))


def _member(place: tuple[str, str, int], root: Tensor) -> Member:
    return Member(place, len(root), torch.arange(len(root)), root)


def _call_order(model: nn.Module, run: Run) -> list[str]:
    """The linear layers in the order in which they run first."""
    order: list[str] = []

    def note(path: str) -> Any:
        return lambda layer, arguments: order.append(path) if path not in order else None

    handles = [
        module.register_forward_pre_hook(note(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    arguments, keywords = run.example
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*arguments, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _linear(model: nn.Module, path: str) -> nn.Linear:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer


def _name(path: str, own: str) -> str:
    return f"{path}.{own}" if path else own


def _is_below(path: str, parent: str) -> bool:
    return not parent or path.startswith(f"{parent}.")
