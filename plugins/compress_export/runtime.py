"""onnxruntime: opening a file, calling it like a network, and what its optimizer makes of the graph."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from compress_export.calling import caller, damaged, signature_in
from compress_export.signature import SIGNATURE

_FATAL = 4


def open_file(path: Path, threads: int) -> Callable[..., Any]:
    """Open an exported file; the result is called like the network.

    Raises:
        ArtifactError: the file is missing or damaged, or was not written by this exporter.
    """
    session = _session(path, _options(threads))
    signature = signature_in(session.get_modelmeta().custom_metadata_map.get(SIGNATURE), str(path))
    names = [argument.name for argument in session.get_inputs()]

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return caller(signature, compute, "onnxruntime", str(path))


def optimized_operators(path: Path, threads: int = 1) -> Counter[str]:
    """How many operators of each type run after onnxruntime's optimization.

    `QLinearConv`, `QLinearMatMul`, `QLinearAdd` and `MatMulInteger` compute in integers; a `Conv` or `MatMul` that
    is left computes in floating point.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = _options(threads)
        options.optimized_model_filepath = str(optimized)
        _session(path, options)
        graph = onnx.load(optimized, load_external_data=False).graph
    return Counter(node.op_type for node in _nodes(graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise damaged(str(path), error, missing=not path.is_file()) from error
