"""OpenVINO: from an ONNX model to its intermediate representation, and the files opened in its runtime.

The representation is a text that holds the graph, and a file of weights beside it. OpenVINO's own transformations fold
constants and leave integers as int8 behind FakeQuantize, which its CPU plugin joins into int8 kernels. Where the
processor has bfloat16, OpenVINO computes real numbers in it unless it is told not to: it is told so here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import openvino
import torch
from openvino._offline_transformations import apply_moc_transformations, compress_quantize_weights_transformation
from torch import Tensor

from compress_core.errors import ModelError
from compress_export.calling import caller, damaged, first_line, signature_in
from compress_export.signature import SIGNATURE

GRAPH, WEIGHTS = "model.xml", "model.bin"
DEVICE = "CPU"
_LAYER = re.compile(r'<layer id="(\d+)" name="[^"]*" type="(\w+)"')


def write(proto: onnx.ModelProto, folder: Path) -> None:
    """Write the two files of an ONNX model; the same model gives the same bytes.

    Raises:
        ModelError: OpenVINO cannot read the model.
    """
    signature = next(entry.value for entry in proto.metadata_props if entry.key == SIGNATURE)
    try:
        model = openvino.Core().read_model(proto.SerializeToString(deterministic=True))
        apply_moc_transformations(model, cf=True, smart_reshape=False)
        compress_quantize_weights_transformation(model)
    except Exception as error:
        raise ModelError(
            f"OpenVINO cannot read the network: {first_line(error)}", mend="export it as `format: onnx` instead"
        ) from error
    model.set_friendly_name("network")
    model.set_rt_info(signature, [SIGNATURE])
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
    path = folder / GRAPH
    path.write_text(without_ornament(path.read_text(encoding="utf-8")), encoding="utf-8")


def without_ornament(graph: str) -> str:
    """The text of a graph without indents and notes of where it comes from; layers are named by type and number.

    OpenVINO numbers them over all networks that a process has seen.
    """
    graph = re.sub(r">\s+<", "><", graph)
    graph = re.sub(r"<framework>.*?</framework>", "", graph)
    graph = re.sub(r'<attribute name="fused_names"[^>]*/>', "", graph)
    return _LAYER.sub(r'<layer id="\1" name="\2_\1" type="\2"', graph)


def open_folder(folder: Path, threads: int) -> Callable[..., Any]:
    """Open an exported network; the result is called like it.

    Raises:
        ArtifactError: a file is missing or damaged, or was not written by this exporter.
    """
    path = folder / GRAPH
    compiled = compile_folder(folder, threads)
    model = openvino.Core().read_model(path)
    text = str(model.get_rt_info([SIGNATURE]).value) if model.has_rt_info([SIGNATURE]) else None
    request = compiled.create_infer_request()

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        found = request.infer([tensor.numpy() for tensor in tensors], share_inputs=True)
        return [torch.from_numpy(found[index]) for index in range(len(compiled.outputs))]

    return caller(signature_in(text, str(path)), compute, "OpenVINO", str(path))


def compile_folder(folder: Path, threads: int) -> openvino.CompiledModel:
    """The network as the CPU plugin runs it: on so many threads, real numbers in float32.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    path = folder / GRAPH
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    try:
        return openvino.Core().compile_model(path, DEVICE, settings)
    except Exception as error:
        missing = next((place for place in (path, folder / WEIGHTS) if not place.is_file()), None)
        raise damaged(str(missing or path), error, missing=missing is not None) from error


def executed_layers(folder: Path, threads: int = 1) -> Counter[tuple[str, str]]:
    """How many layers of each type and number format run after OpenVINO's optimization, as in `("Convolution", "u8")`.

    A convolution or a matrix product in `u8` or `i8` computes in integers; one in `f32` in floating point.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    operations = compile_folder(folder, threads).get_runtime_model().get_ops()
    notes = (operation.get_rt_info() for operation in operations)
    return Counter((_text(note["layerType"]), _text(note["runtimePrecision"])) for note in notes)


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
