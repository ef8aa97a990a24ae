"""From a traced program to an ONNX model.

The program is translated by torch.onnx, and rid of what no runtime needs: the exporter's notes on every node (stack
traces, class names) and the shapes of inner values. The same network gives the same bytes in every process.
"""

from __future__ import annotations

import onnx
import torch
from torch import nn

from compress_core.errors import ModelError
from compress_core.modes import unfused
from compress_export.products import transpose_integer_weights
from compress_export.signature import SIGNATURE, Signature
from compress_export.tracing import Example, Traced, axis_name, quiet, reason, renamed, trace

LARGEST = 2**31 - 1
"""The bytes that one ONNX file can have."""
_PREFIX = "network."


def convert(
    model: nn.Module, example: Example, opset: int, free: tuple[int, ...] = ()
) -> tuple[onnx.ModelProto, Signature]:
    """The ONNX model of a network on the CPU, for any size of the batch, and how it is called.

    Args:
        model: the network.
        example: the forward's arguments; the first axis of each tensor is the batch.
        opset: the version of ONNX's operators.
        free: further axes that may have any size, in every input that has them.

    Raises:
        ModelError: it cannot be traced, has an operator that ONNX lacks in that version, or is too large for one file.
    """
    _refuse_large(model)
    traced = trace(model, example, free)
    with unfused(), torch.no_grad(), quiet():
        program = _translate(traced, opset)
    _take_prefix_away(program)
    proto = program.model_proto
    check_opset(proto, opset)
    transpose_integer_weights(proto.graph)
    strip(proto, (0, *free))
    onnx.helper.set_model_props(proto, {SIGNATURE: traced.signature.to_json()})
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ModelError(f"the exported file is not valid ONNX: {error}", mend="try another `opset`") from error
    return proto, traced.signature


def has_integers(proto: onnx.ModelProto) -> bool:
    """Whether some of it computes in integers."""
    return any(node.op_type == "QuantizeLinear" for node in proto.graph.node)


def _refuse_large(model: nn.Module) -> None:
    """Refuse what would need a second file beside the first, which is easily left behind."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > LARGEST:
        raise ModelError(
            f"its tensors take {size:,} bytes, and an ONNX file holds at most {LARGEST:,}",
            mend="quantize or prune the network first",
        )


def check_opset(proto: onnx.ModelProto, wanted: int) -> None:
    """Refuse a file whose operators are of another version than was asked for: converters give up silently.

    Raises:
        ModelError: they are.
    """
    found = {entry.domain: entry.version for entry in proto.opset_import}.get("", 0)
    if found != wanted:
        raise ModelError(
            f"the network can be written with version {found} of ONNX's operators, not {wanted}",
            where="opset",
            mend=f"write `opset: {found}`",
        )


def _take_prefix_away(program: torch.onnx.ONNXProgram) -> None:
    """Call the weights what the network calls them, unless something else has that name."""
    graph = program.model.graph
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
    for name in list(graph.initializers):
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in taken:
            graph.initializers[name].name = name.removeprefix(_PREFIX)


def strip(proto: onnx.ModelProto, free: tuple[int, ...] = (0,)) -> None:
    """Take away what no runtime needs, in place, and give the free axes their names."""
    proto.producer_version = ""
    proto.doc_string = ""
    del proto.metadata_props[:]
    graph = proto.graph
    symbols: dict[str, str] = {}
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        for axis in free:
            if axis < len(sizes) and sizes[axis].dim_param:
                symbols.setdefault(sizes[axis].dim_param, axis_name(axis))
    _strip_graph(graph)
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:  # setting it takes a fixed size away
                size.dim_param = renamed(size.dim_param, symbols)


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


def _translate(traced: Traced, opset: int) -> torch.onnx.ONNXProgram:
    names = ([entry["name"] for entry in entries] for entries in (traced.signature.takes, traced.signature.gives))
    inputs, outputs = names
    try:
        found = torch.onnx.export(
            traced.program, input_names=inputs, output_names=outputs, opset_version=opset, verbose=False
        )
    except Exception as error:
        raise ModelError(
            f"the network cannot be written as ONNX: {reason(error)}",
            mend="replace the operator by others, or give another `opset`",
        ) from error
    assert found is not None
    return found
