"""From a network to one that trains with quantizers in it, and from there to one that holds integers.

`make_quantizable` gives every layer its training layer and every edge its quantizer, in place: parameters,
paths and hooks stay. `hold_integers` replaces the training layers by layers of integers, folds BatchNorm into
them and fixes every quantizer. Between the two the network may train, and its channels may be pruned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.errors import ModelError
from compress_core.masks import MARK, hold_zeros
from compress_core.modes import evaluating
from compress_quantize.edges import Edges, find_edges
from compress_quantize.folding import Normalization
from compress_quantize.graph import Graph, Node, become_graph, run_nodes, with_quantizers, without
from compress_quantize.layers import (
    KEPT,
    TRAINING,
    Training,
    freeze,
    make_trainable,
    quantizer_of,
    reopen,
)
from compress_quantize.observers import ActivationQuantizer, Quantizer
from compress_quantize.tracing import Untraceable, trace

SUFFIX = "_quantizer"
"""What the quantizer behind a node is called, after the node's name."""


@dataclass
class Report:
    """What was done, and what was not and why."""

    left: dict[str, str] = field(default_factory=dict)
    """Path of a module that stays real: why."""
    untraced: dict[str, str] = field(default_factory=dict)
    """Path of a container in which only the inputs of layers are quantized: why."""


def make_quantizable(model: nn.Module, forward: Callable[[], Any], skipped: set[str]) -> Report:
    """Put training layers and quantizers into a network, in place.

    Args:
        model: the network.
        forward: runs it on an example.
        skipped: paths of modules that stay as they are.

    Raises:
        ModelError: a container needs more than its forward.
    """
    calls, inputs, before = _watched(model, forward)
    report = Report()
    layers: set[str] = set()
    for path, module in model.named_modules():
        if reason := _why_real(path, module, model, calls, skipped):
            report.left[path] = reason
        elif type(module) in TRAINING:
            layers.add(path)
    traced, untraced = _traced(model, calls, inputs, skipped) if layers else ({}, {})
    report.untraced = {path: why for path, why in untraced.items() if any(_inside(layer, path) for layer in layers)}
    edges = find_edges(model, traced, layers, calls)
    for path, nodes in edges.quantizers.items():
        become_graph(container := model.get_submodule(path), with_quantizers(traced[path], nodes, SUFFIX))
        for node in nodes:
            container.register_module(node + SUFFIX, ActivationQuantizer().train(container.training))
    _check_same(before, forward, model, edges)
    for path in layers:
        source = edges.sources.get(path)
        make_trainable(
            model.get_submodule(path),
            source=None if source is None else _join(source[0], source[1] + SUFFIX),
            norm=edges.norms.get(path),
        )
    _refuse_fused_paths(model)
    return report


def _refuse_fused_paths(model: nn.Module) -> None:
    """Keep torch's encoder layer from computing with the weights past the layers that hold them."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(x, Training) for x in module.children()):
            module.activation_relu_or_gelu = 0


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _inside(path: str, container: str) -> bool:
    return not container or path == container or path.startswith(f"{container}.")


@torch.no_grad()
def _watched(
    model: nn.Module, forward: Callable[[], Any]
) -> tuple[Counter[str], dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]], Any]:
    """How often each module is called, what went into and came out of each container, and the whole output."""
    calls: Counter[str] = Counter()
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
    handles = []
    for path, module in model.named_modules():

        def watch(module: nn.Module, inputs: Any, named: Any, output: Any, path: str = path) -> None:
            calls[path] += 1
            if _is_container(module):
                seen[path] = (inputs, named, output)

        handles.append(module.register_forward_hook(watch, with_kwargs=True))
    try:
        with evaluating(model):
            output = forward()
    finally:
        for handle in handles:
            handle.remove()
    return calls, seen, output


def _is_container(module: nn.Module) -> bool:
    """Whether a module's forward is made of smaller steps; torch's own layers are whole."""
    if isinstance(module, nn.Sequential | Graph):
        return True
    return not type(module).__module__.startswith("torch.nn.modules") or isinstance(
        module, nn.TransformerEncoder | nn.TransformerEncoderLayer
    )


def _why_real(path: str, module: nn.Module, model: nn.Module, calls: Mapping[str, int], skipped: set[str]) -> str:
    """Why a module with weights stays real; empty if it need not, or has none."""
    if type(module) not in TRAINING:
        weights = any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
        return f"{type(module).__name__} has no integer form" if weights else ""
    if path in skipped:
        return "skipped"
    if not calls.get(path):
        return "the example does not reach it"
    if "weight" not in module._parameters:
        return "its weight is no plain parameter"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"it pads with {module.padding_mode!r}"
    owners = {id(other) for other in model.modules() if any(own is module.weight for own in other._parameters.values())}
    return "its weight is shared with another module" if len(owners) > 1 else ""


def _traced(
    model: nn.Module,
    calls: Mapping[str, int],
    seen: Mapping[str, tuple[tuple[Any, ...], dict[str, Any], Any]],
    skipped: set[str],
) -> tuple[dict[str, list[Node]], dict[str, str]]:
    """The nodes of every container that can be traced and then gives what it gave before, and why others cannot."""
    found: dict[str, list[Node]] = {}
    reasons: dict[str, str] = {}
    for path, module in model.named_modules():
        if not calls.get(path) or not _is_container(module) or path in skipped:
            continue
        try:
            nodes = trace(module)
            _check_nodes(module, nodes, *seen[path])
            found[path] = nodes
        except Untraceable as error:
            reasons[path] = str(error)
    return found, reasons


@torch.no_grad()
def _check_nodes(
    module: nn.Module, nodes: list[Node], inputs: tuple[Any, ...], named: dict[str, Any], output: Any
) -> None:
    try:
        with evaluating(module):
            again = run_nodes(module, nodes, inputs, named)
    except Exception as error:
        raise Untraceable(f"its nodes do not run: {str(error).partition(chr(10))[0]}") from error
    if not _equal(output, again):
        raise Untraceable("its nodes give something else")


def _equal(one: Any, other: Any) -> bool:
    match one:
        case Tensor():
            return isinstance(other, Tensor) and torch.allclose(one, other, equal_nan=True)
        case dict():
            return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
        case list() | tuple():
            return type(one) is type(other) and len(one) == len(other) and all(map(_equal, one, other))
        case _:
            return bool(one == other)


@torch.no_grad()
def _check_same(before: Any, forward: Callable[[], Any], model: nn.Module, edges: Edges) -> None:
    try:
        with evaluating(model):
            same = _equal(before, forward())
        reason = "" if same else "it gives something else"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        names = sorted(edges.quantizers)
        raise ModelError(
            f"the network needs more of {', '.join(map(repr, names))} than a traced forward: {reason}",
            mend="leave what fails out with `skip`",
        )


def is_stale(model: nn.Module) -> bool:
    """Whether some range is unknown, or a layer has been narrowed since the ranges were taken."""
    layers = [module for module in model.modules() if isinstance(module, Training)]
    unknown = any(not quantizer.observed for quantizer in quantizers(model).values())
    return unknown or any(layer.get_parameter("weight").shape != layer.first_shape for layer in layers)


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """The quantizers of a network that trains, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ActivationQuantizer)}


@torch.no_grad()
def calibrate(model: nn.Module, forwards: Iterable[Callable[[], Any]], percentile: float) -> None:
    """Take the range of every edge anew from the network as it is now."""
    found = quantizers(model)
    for quantizer in found.values():
        quantizer.restart(percentile)
    with evaluating(model):
        for forward in forwards:
            forward()
    for quantizer in found.values():
        quantizer.calibrating = False


def hold_integers(model: nn.Module) -> tuple[nn.Module, int, int]:
    """Replace training layers and quantizers by those that are kept; counts the layers and the folded BatchNorms.

    Raises:
        ModelError: the values on an edge were not finite.
    """
    grids = {path: _grid(path, quantizer) for path, quantizer in quantizers(model).items()}
    new: dict[int, nn.Module] = {}
    norms: set[str] = set()
    layers = 0
    for path, layer in model.named_modules():
        if not isinstance(layer, Training):
            continue
        source = layer.source if layer.source is not None else _join(path, "input_quantizer")
        norm = None
        if layer.norm is not None:
            folded = model.get_submodule(layer.norm)
            norm = _normalization(folded)
            new[id(folded)] = nn.Identity().train(folded.training)
            norms.add(layer.norm)
        kept = freeze(layer, torch.tensor(grids[source].scale), norm)
        _keep_marks(layer, kept)
        kept.register_module("input_quantizer", grids[source] if layer.source is None else None)
        new[id(layer)] = kept
        layers += 1
    new |= {id(quantizer): grids[path] for path, quantizer in quantizers(model).items()}
    replace_modules(model, new)
    return new.get(id(model), model), layers, len(norms)


def _keep_marks(old: nn.Module, new: nn.Module) -> None:
    """Removed weights stay removed: their marks move on to the new layer."""
    for tensor in vars(old).get(MARK, ()):
        hold_zeros(new, tensor)


def _grid(path: str, observer: ActivationQuantizer) -> Quantizer:
    if not observer.observed:
        raise ModelError(
            "no calibration batch reaches it", where=path, mend="leave its layer out with `skip`, or give more data"
        )
    if not (torch.isfinite(observer.low) and torch.isfinite(observer.high)):
        raise ModelError(
            "the values that pass are not finite",
            where=path,
            mend="look for NaN or infinity in the weights and the data",
        )
    return quantizer_of(observer)


def _normalization(norm: nn.Module) -> Normalization:
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Normalization(
        norm.running_mean,
        norm.running_var,
        norm.weight.detach() if norm.affine else torch.ones_like(norm.running_mean),
        norm.bias.detach() if norm.affine else torch.zeros_like(norm.running_mean),
        norm.eps,
    )


def replace_modules(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put new modules in the places of old ones, known by `id`, wherever they stand."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in new:
                parent._modules[name] = new[id(child)]


def hold_reals(model: nn.Module) -> tuple[nn.Module, int]:
    """Ordinary layers again for those of integers, without quantizers; returns how many there were."""
    new: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, KEPT):
            new[id(module)] = reopen(module)
            _keep_marks(module, new[id(module)])
    for module in model.modules():
        if isinstance(module, Graph):
            gone = [name for name, child in module._modules.items() if isinstance(child, Quantizer)]
            module.nodes = without(module.nodes, gone)
            for name in gone:
                del module._modules[name]
    replace_modules(model, new)
    return new.get(id(model), model), len(new)
