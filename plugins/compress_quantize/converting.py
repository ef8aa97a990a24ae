"""From a network to one that trains, or is calibrated, with quantizers on its edges.

`make_quantizable` gives every layer its training layer and every edge its quantizer, in place: parameters,
paths and hooks stay. The network may then train, and its channels may be pruned. At last, `finishing.hold_integers`
makes it hold integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.attention import cannot_unpack, unpack
from compress_core.errors import ModelError
from compress_core.modes import evaluating, leave_fused_paths
from compress_core.weights import shared_parameters
from compress_quantize.edges import Edges, find_edges
from compress_quantize.graph import Graph, Node, become_graph, run_nodes, with_quantizers
from compress_quantize.layers import (
    TRAINING,
    Training,
    make_trainable,
)
from compress_quantize.learned_step import new_quantizer
from compress_quantize.observers import ActivationQuantizer
from compress_quantize.tracing import Untraceable, trace
from compress_quantize.weight_only import PLANNED, can_hold
from compress_quantize.widths import Grids, Numbers

SUFFIX = "_quantizer"
"""What the quantizer behind a node is called, after the node's name."""


@dataclass
class Report:
    """What was done, and what was not and why."""

    left: dict[str, str] = field(default_factory=dict)
    """Path of a module that stays real: why."""
    held: dict[str, str] = field(default_factory=dict)
    """Path of a module whose weights become integers, and which computes in real numbers: its type."""
    untraced: dict[str, str] = field(default_factory=dict)
    """Path of a container in which only the inputs of layers are quantized: why."""


def make_quantizable(
    model: nn.Module,
    forward: Callable[[], Any],
    skipped: set[str],
    numbers: Numbers = Numbers(),  # noqa: B008 - frozen
) -> Report:
    """Put training layers and quantizers into a network, in place.

    Args:
        model: the network.
        forward: runs it on an example.
        skipped: paths of modules that stay as they are.
        numbers: what its weights and activations become.

    Raises:
        ModelError: a container needs more than its forward.
    """
    _take_attention_apart(model, skipped)
    calls, ranks, inputs, before = _watched(model, forward)
    report = Report()
    layers: set[str] = set()
    shared = shared_parameters(model, whole_modules=False)
    for path, module in model.named_modules():
        if reason := _why_real(path, module, shared, calls, skipped):
            report.left[path] = reason
        elif type(module) in TRAINING:
            layers.add(path)
        elif can_hold(module):
            report.held[path] = type(module).__name__
            vars(module)[PLANNED] = True
    traced, untraced = _traced(model, calls, inputs, skipped) if layers else ({}, {})
    report.untraced = {path: why for path, why in untraced.items() if any(_inside(layer, path) for layer in layers)}
    edges = find_edges(model, traced, layers, calls, ranks)
    grids = Grids(numbers, [path for path in calls if path in layers], edges)
    for path, nodes in edges.quantizers.items():
        become_graph(container := model.get_submodule(path), with_quantizers(traced[path], nodes, SUFFIX))
        for node in nodes:
            quantizer = new_quantizer(grids.of_edge(path, node), learned=numbers.learned)
            container.register_module(node + SUFFIX, quantizer.train(container.training))
    _check_same(before, forward, model, edges)
    for path in layers:
        source = grids.source_of(path)
        make_trainable(
            model.get_submodule(path),
            source=None if source is None else _join(source[0], source[1] + SUFFIX),
            norm=edges.norms.get(path),
            observing=grids.of_input(path),
            grid=grids.of_weight(path),
            learned=numbers.learned,
        )
        _note_neighbours(model.get_submodule(path), edges, path)
    leave_fused_paths(model, layers)
    return report


def _take_attention_apart(model: nn.Module, skipped: set[str]) -> None:
    """Put linear layers in the places of the projections of torch's attention, where nothing stands against it."""
    shared = shared_parameters(model, whole_modules=False)
    paths = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention) or not path or path in skipped:
            continue
        used = any(_join(path, name) in shared for name, _ in module.named_parameters())
        if cannot_unpack(module) is None and not used:
            paths.append(path)
    unpack(model, paths)


def _note_neighbours(layer: nn.Module, edges: Edges, path: str) -> None:
    assert isinstance(layer, Training)
    layer.rectified, layer.reader = path in edges.rectified, edges.readers.get(path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _inside(path: str, container: str) -> bool:
    return not container or path == container or path.startswith(f"{container}.")


@torch.no_grad()
def _watched(
    model: nn.Module, forward: Callable[[], Any]
) -> tuple[Counter[str], dict[str, int], dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]], Any]:
    """How often each module is called, its output's rank, what went in and out of containers, and the whole output."""
    calls: Counter[str] = Counter()
    ranks: dict[str, int] = {}
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
    handles = []
    for path, module in model.named_modules():

        def watch(module: nn.Module, inputs: Any, named: Any, output: Any, path: str = path) -> None:
            calls[path] += 1
            if isinstance(output, Tensor):
                ranks[path] = output.ndim
            if _is_container(module):
                seen[path] = (inputs, named, output)

        handles.append(module.register_forward_hook(watch, with_kwargs=True))
    try:
        with evaluating(model):
            output = forward()
    finally:
        for handle in handles:
            handle.remove()
    return calls, ranks, seen, output


def _is_container(module: nn.Module) -> bool:
    """Whether a module's forward is made of smaller steps; torch's own layers are whole."""
    if isinstance(module, nn.Sequential | Graph):
        return True
    return not type(module).__module__.startswith("torch.nn.modules") or isinstance(
        module, nn.TransformerEncoder | nn.TransformerEncoderLayer
    )


def _why_real(path: str, module: nn.Module, shared: set[str], calls: Mapping[str, int], skipped: set[str]) -> str:
    """Why a module with weights stays real; empty if it need not, or has none."""
    if type(module) not in TRAINING and not can_hold(module):
        weights = any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
        return f"{type(module).__name__} has no integer form" if weights else ""
    if path in skipped:
        return "skipped"
    if not calls.get(path):
        return "the example does not reach it"
    plain = [name for name, tensor in module._parameters.items() if tensor is not None and tensor.ndim >= 2]
    if not plain or hasattr(module, "parametrizations"):
        return "its weight is no plain parameter"
    if type(module) in TRAINING and module.get_parameter(plain[0]).dtype == torch.float64:
        return "it computes in float64, and what integers stand for is float32"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"it pads with {module.padding_mode!r}"
    used = any(_join(path, name) in shared for name in plain)
    return "its weight is shared with another module" if used else ""


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
def calibrate(model: nn.Module, forwards: Iterable[Callable[[], Any]]) -> None:
    """Take the range of every edge anew from the network as it is now."""
    found = quantizers(model)
    for quantizer in found.values():
        quantizer.restart()
    with evaluating(model):
        for forward in forwards:
            forward()
    for quantizer in found.values():
        quantizer.settle()
