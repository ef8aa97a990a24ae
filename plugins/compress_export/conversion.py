"""From a torch network to an ONNX model.

The network is traced by torch.export with one free axis, the batch, translated by torch.onnx, and rid of
what no runtime needs: the exporter's notes on every node (stack traces, class names) and the shapes of
inner values. The same network gives the same bytes in every process.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from io import StringIO
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compress_core.errors import ModelError
from compress_core.modes import evaluating, unfused
from compress_export.runtime import SIGNATURE
from compress_export.signature import (
    bind,
    flatten,
    input_names,
    output_names,
    parameter_names,
    positional_names,
    refill,
)

BATCH = "batch"
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = "network."


Example = tuple[tuple[Any, ...], dict[str, Any]]


class Flat(nn.Module):
    """A network that takes its tensors, and gives them, in a row."""

    def __init__(self, network: nn.Module, example: Example) -> None:
        super().__init__()
        self.network = network
        self.parameter_names = parameter_names(network)
        self.positional = positional_names(self.parameter_names, len(example[0]))
        self.keywords = list(example[1])
        self.named = bind(self.parameter_names, *example)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the output, for the tensors of the arguments in the order of their names."""
        values = refill(self.named, iter(tensors))
        arguments = [values.get(name) for name in self.positional]
        keywords = {name: values.get(name) for name in self.keywords}
        found: list[Tensor] = []
        flatten(self.network(*arguments, **keywords), found, "the output")
        return tuple(found)


def convert(model: nn.Module, example: Example, opset: int) -> onnx.ModelProto:
    """The ONNX model of a network on the CPU, for any size of the batch.

    Args:
        model: the network.
        example: the forward's arguments; the first axis of each tensor is the batch.
        opset: the version of ONNX's operators.

    Raises:
        ModelError: it cannot be traced, or has an operator that ONNX lacks.
    """
    arguments, keywords = resized(example, 2)
    flat = Flat(model, (arguments, keywords))
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    into = flatten(flat.named, inputs, "the input")
    with evaluating(model), unfused(), torch.no_grad(), _quiet():
        out = flatten(_call(model, (arguments, keywords)), outputs, "the output")
        program = _translate(_trace(flat, inputs), input_names(into), output_names(out), opset)
    _take_prefix_away(program)
    proto = program.model_proto
    strip(proto)
    signature = {"parameters": flat.parameter_names, "inputs": into, "output": out}
    onnx.helper.set_model_props(proto, {SIGNATURE: json.dumps(signature, sort_keys=True, separators=(",", ":"))})
    return proto


def _take_prefix_away(program: torch.onnx.ONNXProgram) -> None:
    """Call the weights what the network calls them, unless something else has that name."""
    graph = program.model.graph
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
    for name in list(graph.initializers):
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in taken:
            graph.initializers[name].name = name.removeprefix(_PREFIX)


def strip(proto: onnx.ModelProto) -> None:
    """Take away what no runtime needs, in place, and call the free axis `batch`."""
    proto.producer_version = ""
    proto.doc_string = ""
    del proto.metadata_props[:]
    graph = proto.graph
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in graph.input}
    _strip_graph(graph)
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            for symbol in symbols:
                if size.dim_param:  # setting it takes a fixed size away
                    size.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, size.dim_param)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    for entry in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        entry.doc_string = ""
        del entry.metadata_props[:]
    for node in graph.node:
        node.name = ""
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _strip_graph(inner)


def resized(value: Any, rows: int) -> Any:
    """Arguments with that many rows of the batch; they are repeated from the first."""
    tensors: list[Tensor] = []
    flatten(value, tensors, "the input")
    return refill(value, iter([tensor[torch.arange(rows) % len(tensor)] for tensor in tensors]))


def on_cpu(model: nn.Module, example: Example) -> tuple[nn.Module, Example]:
    """The network and its arguments on the CPU; the network itself if it is there already."""
    tensors: list[Tensor] = []
    flatten(example, tensors, "the input")
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        model = deepcopy(model).cpu()
    moved: Example = refill(example, iter([tensor.cpu() for tensor in tensors]))
    return model, moved


def _call(model: nn.Module, example: Example) -> Any:
    try:
        return model(*example[0], **example[1])
    except Exception as error:
        raise ModelError(
            f"the network does not run on its example: {_reason(error)}", mend="check that the data fit its forward"
        ) from error


def _trace(flat: Flat, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim(BATCH)
    try:
        return torch.export.export(flat, tuple(inputs), dynamic_shapes=(tuple({0: batch} for _ in inputs),))
    except Exception as error:
        reason = _reason(error)
        if "pecialized" in str(error) and BATCH in str(error):
            reason = "its forward works for one size of the batch only"
            mend = "take the size of the batch from the input's shape, never as a number"
        else:
            mend = "replace what depends on the values of tensors (`if`, `.item()`) by torch.where or masks"
        raise ModelError(f"torch.export cannot trace the network: {reason}", mend=mend) from error


def _translate(
    program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str], opset: int
) -> torch.onnx.ONNXProgram:
    try:
        found = torch.onnx.export(program, input_names=inputs, output_names=outputs, opset_version=opset, verbose=False)
    except Exception as error:
        raise ModelError(
            f"the network cannot be written as ONNX: {_reason(error)}",
            mend="replace the operator by others, or give another `opset`",
        ) from error
    assert found is not None
    return found


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line.strip() for line in _COLORS.sub("", str(error)).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
