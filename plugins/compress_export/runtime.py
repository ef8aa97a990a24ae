"""onnxruntime: opening a file, calling it like a network, and what its optimizer makes of the graph."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from compress_core.errors import ArtifactError, ModelError
from compress_export.signature import Tree, bind, flatten, rebuild

SIGNATURE = "compress"
"""The metadata entry of the file that says how the network is called."""
_FATAL = 4


def open_file(path: Path, threads: int) -> Callable[..., Any]:
    """Open an exported file; the result is called like the network.

    Raises:
        ArtifactError: the file is missing or damaged, or was not written by this exporter.
    """
    session = _session(path, _options(threads))
    entry = session.get_modelmeta().custom_metadata_map.get(SIGNATURE)
    if entry is None:
        raise ArtifactError("it does not say how the network is called", where=str(path), mend="export it again")
    signature = json.loads(entry)
    names = [argument.name for argument in session.get_inputs()]

    def call(*arguments: Any, **keywords: Any) -> Any:
        tensors: list[Tensor] = []
        tree = flatten(bind(signature["parameters"], arguments, keywords), tensors, "the input")
        if tree != signature["inputs"]:
            raise ModelError(
                f"it was exported for the arguments {_shown(signature['inputs'])} and gets {_shown(tree)}",
                where=str(path),
                mend="export it with an example of such arguments",
            )
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
        try:
            found = session.run(None, feed)
        except Exception as error:
            raise ModelError(
                f"onnxruntime cannot run it: {_first_line(error)}", where=str(path), mend="check the input's shape"
            ) from error
        return rebuild(signature["output"], [torch.from_numpy(output) for output in found])

    return call


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
        missing = not path.is_file()
        raise ArtifactError(
            "there is no such file" if missing else f"it is damaged: {_first_line(error)}",
            where=str(path),
            mend="export it again with `dvc repro`, or fetch it again with `dvc pull`",
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _shown(tree: Tree) -> str:
    return json.dumps(tree["dict"], sort_keys=True).replace('"', "")
