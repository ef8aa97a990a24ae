"""Which weights of a network become codes, and the way from a real network to one that keeps them.

`attach` gives every layer that can be coded its training layer, in place; `hold_codes` puts kept layers in their
places. Attention is taken apart, so that its projections are layers like any other. A weight that several layers
share has one coder, and is kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from compress_codes.coded import CodedTensor, Shared, keep
from compress_codes.layers import kept_layer
from compress_codes.packing import packed_bytes
from compress_codes.recurrent import kept_recurrent, weight_names
from compress_codes.training import TRAINING, Coder, Training, make_real, make_trainable, output_axis
from compress_core.attention import Attention, cannot_unpack, pack, unpack
from compress_core.errors import ModelError
from compress_core.modes import leave_fused_paths
from compress_core.selecting import matching
from compress_core.weights import NORMS, shared_parameters


@dataclass(frozen=True)
class Candidate:
    """A weight that could be coded."""

    name: str
    """Its first name in the network."""
    weight: nn.Parameter
    axis: int
    """On which its output channels lie."""


MakeCoder = Callable[[Candidate], "Coder | str"]
"""The coder of a weight, or why it stays real."""


@dataclass
class Report:
    """What was done, and what was not and why."""

    coders: dict[str, Coder] = field(default_factory=dict)
    """The coder of each weight that becomes codes, by the weight's first name."""
    left: dict[str, str] = field(default_factory=dict)
    """The name of a module or a weight that stays real: why."""


def attach(model: nn.Module, skip: Collection[str], make: MakeCoder) -> Report:
    """Give every layer that can be coded its training layer, in place.

    Args:
        model: the network.
        skip: patterns of modules that stay real.
        make: gives each weight its coder.

    Raises:
        ModelError: a pattern matches no module, or a weight is not finite.
    """
    skipped = matching(model, skip)
    opened = [path for path, module in model.named_modules() if path not in skipped and _can_open(model, path, module)]
    flags = _flags(model)
    unpack(model, opened)
    report = Report()
    found = _candidates(model, {**skipped, **matching(model, skip)}, report)
    coders: dict[int, Coder] = {}
    for place in found.values():
        if id(place.weight) not in coders:
            if not torch.isfinite(place.weight).all():
                raise ModelError("the weight holds numbers that are not finite", where=place.name, mend=_MEND)
            made = make(place)
            if isinstance(made, str):
                report.left[place.name] = made
            else:
                coders[id(place.weight)] = report.coders[place.name] = made.to(place.weight.device)
    changed = _swap(model, found, coders)
    pack(model, opened)
    for module, name, value in flags:
        setattr(module, name, value)
    still = [path for path in opened if isinstance(model.get_submodule(path), Attention)]
    leave_fused_paths(model, [*changed, *(f"{path}.q_proj" for path in still)])
    return report


_MEND = "train again with a lower learning rate, or look for the step that broke it"


def _flags(model: nn.Module) -> list[tuple[nn.Module, str, object]]:
    """What taking attention apart changes in torch's layers, as it is."""
    kinds = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
    return [
        (module, name, getattr(module, name))
        for module in model.modules()
        for kind, name in kinds.items()
        if isinstance(module, kind)
    ]


def _can_open(model: nn.Module, path: str, module: nn.Module) -> bool:
    """Whether a module is attention that can be taken apart."""
    if not isinstance(module, nn.MultiheadAttention) or not path or cannot_unpack(module) is not None:
        return False
    shared = shared_parameters(model)
    return not any(f"{path}.{name}" in shared for name, _ in module.named_parameters())


def _candidates(model: nn.Module, skipped: Collection[str], report: Report) -> dict[str, Candidate]:
    """The weights that could be coded, under every name; why others stay real goes into the report."""
    found: dict[str, Candidate] = {}
    real: dict[int, str] = {}
    for path, module in model.named_modules():
        reason = _why_real(path, module, skipped)
        if reason:
            report.left[path] = reason
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{path}.{name}" if path else name
            if reason or type(module) not in TRAINING:
                real.setdefault(id(parameter), full)
            elif name in _names(module):
                found[full] = Candidate(full, parameter, output_axis(module))
    return dict(_without_shared(found, real, report))


def _names(layer: nn.Module) -> list[str]:
    """The names of a layer's weights."""
    return weight_names(layer) if isinstance(layer, nn.RNNBase) else ["weight"]


def _without_shared(
    found: dict[str, Candidate], real: dict[int, str], report: Report
) -> Iterator[tuple[str, Candidate]]:
    """Those that no layer needs real, or with its output channels on another axis."""
    axes: dict[int, set[int]] = {}
    for place in found.values():
        axes.setdefault(id(place.weight), set()).add(place.axis)
    for full, place in found.items():
        if id(place.weight) in real:
            report.left[full] = f"{real[id(place.weight)]} has the same weight and stays real"
        elif len(axes[id(place.weight)]) > 1:
            report.left[full] = "another layer has the same weight the other way round"
        else:
            yield full, place


def _why_real(path: str, module: nn.Module, skipped: Collection[str]) -> str:
    """Why a module with weights stays real; empty if it need not, or has none."""
    if type(module) not in TRAINING:
        weights = any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
        return f"{type(module).__name__} has no coded form" if weights and not isinstance(module, NORMS) else ""
    if path in skipped:
        return "skipped"
    if any(name not in module._parameters for name in _names(module)):
        return "its weight is no plain parameter"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "it holds its rows below `max_norm`"
    kinds = {module.get_parameter(name).dtype for name in _names(module)}
    if kinds != {torch.float32}:
        return f"its numbers are {', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))}"
    return "it is empty" if any(module.get_parameter(name).numel() == 0 for name in _names(module)) else ""


def _swap(model: nn.Module, found: dict[str, Candidate], coders: dict[int, Coder]) -> list[str]:
    """Make training layers of those that have a coder; their paths."""
    layers: dict[str, dict[str, Coder]] = {}
    for full, place in found.items():
        if (coder := coders.get(id(place.weight))) is not None:
            path, _, name = full.rpartition(".")
            layers.setdefault(path, {})[name] = coder
    for path, own in layers.items():
        make_trainable(model.get_submodule(path), own)
    return list(layers)


def places(model: nn.Module) -> dict[str, tuple[Coder, nn.Parameter]]:
    """The coder and the weight of every training layer, a shared one once, by the weight's name."""
    found: dict[str, tuple[Coder, nn.Parameter]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, Training):
            continue
        for name, coder in module.coders.items():
            assert isinstance(coder, Coder)
            if id(coder) not in seen:
                seen.add(id(coder))
                found[f"{path}.{name}" if path else name] = coder, module.get_parameter(name)
    return found


def start(model: nn.Module) -> None:
    """Let the network compute with codes from now on, where it does not yet."""
    waiting = [(coder, weight) for coder, weight in places(model).values() if not coder.active]
    _settle(waiting)
    for coder, weight in waiting:
        coder.active = True
        if coder.freezes and weight.requires_grad:
            coder.froze = True
            weight.requires_grad_(False)


def _settle(found: list[tuple[Coder, nn.Parameter]]) -> None:
    """Let every book take what it keeps from all of its weights."""
    books: dict[int, list[tuple[Coder, nn.Parameter]]] = {}
    for coder, weight in found:
        books.setdefault(id(coder.book), []).append((coder, weight))
    for members in books.values():
        members[0][0].settle([weight for _, weight in members])


@dataclass
class Held:
    """What is kept now."""

    model: nn.Module
    weights: int = 0
    """How many weight tensors are codes."""
    before: int = 0
    """Their bytes as fp32."""
    after: int = 0
    """Their bytes as codes, with scales and tables."""
    left: dict[str, str] = field(default_factory=dict)
    """The name of a weight that stays real after all: why."""
    bits: dict[int, int] = field(default_factory=dict)
    """How many weight tensors have codes of so many bits."""


@torch.no_grad()
def hold_codes(model: nn.Module) -> Held:
    """Replace training layers by those that keep codes.

    Raises:
        ModelError: a weight is not finite.
    """
    held = Held(model)
    found = places(model)
    for name, (coder, weight) in found.items():
        weight.requires_grad_(weight.requires_grad or coder.froze)
        if not torch.isfinite(weight).all():
            raise ModelError("the weight holds numbers that are not finite", where=name, mend=_MEND)
        if reason := coder.refuses(weight):
            held.left[name] = reason
    chosen = [place for name, place in found.items() if name not in held.left]
    _settle([(coder, weight) for coder, weight in chosen if not coder.trained])
    kept: dict[int, CodedTensor] = {}
    shared: Shared = {}
    for coder, weight in chosen:
        coding = coder.coding(weight.detach())
        kept[id(coder)] = keep(coding, shared)
        held.weights += 1
        held.before += weight.nbytes
        held.after += packed_bytes(weight.numel(), coding.bits)
        held.bits[coding.bits] = held.bits.get(coding.bits, 0) + 1
    held.after += sum({id(part): part.nbytes for tensor in kept.values() for part in tensor.extras()}.values())
    new = _kept_layers(model, kept)
    _replace(model, new)
    held.model = new.get(id(model), model)
    pack(held.model, [path for path, module in held.model.named_modules() if path and isinstance(module, Attention)])
    return held


def _kept_layers(model: nn.Module, kept: dict[int, CodedTensor]) -> dict[int, nn.Module]:
    """The kept layer of every training layer, by the latter's id; one without codes is made real in place."""
    new: dict[int, nn.Module] = {}
    for layer in list(model.modules()):
        if not isinstance(layer, Training):
            continue
        own = {name: kept[id(coder)].twin() for name, coder in layer.coders.items() if id(coder) in kept}
        if not own:
            make_real(layer)
        elif isinstance(layer, nn.RNNBase):
            new[id(layer)] = kept_recurrent(layer, own)
        else:
            new[id(layer)] = kept_layer(layer, layer.kind, own["weight"])
    return new


def _replace(model: nn.Module, new: dict[int, nn.Module]) -> None:
    """Put new modules in the places of old ones, wherever they stand."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in new:
                parent._modules[name] = new[id(child)]
