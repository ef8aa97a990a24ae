"""torch.export's own file, `.pt2`, without the pickles that it may hold.

The archive of torch 2.13 is a zip of JSON (the graph, as calls of torch's operators) and raw tensors. Example inputs,
tensor subclasses and custom objects would be pickled in it, and torch unpickles whatever stands in their places; a
graph's symbolic sizes are read by evaluating text. So what is written here has none of the former, and what is opened
is read first: every entry must be one that this exporter writes, nothing may be marked as pickled, no guards may be
code, and symbolic sizes may hold arithmetic only. Stack traces, class names and paths are taken out of the graph.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines the operators of integer networks
from torch import Tensor

from compress_core.errors import ArtifactError, ModelError
from compress_core.modes import torch_threads
from compress_export.calling import caller, damaged, signature_in
from compress_export.signature import SIGNATURE
from compress_export.tracing import Traced, quiet, reason

KEPT = frozenset({"val"})
"""What stays of the notes on a node: shapes and number formats."""
_EXTRA = f"extra/{SIGNATURE}"
_GRAPH = "models/model.json"
_EXAMPLE = "data/sample_inputs/model.pt"
_TENSORS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_ENTRIES = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)"
)
_OPERATORS = re.compile(r"torch\.ops\.(aten|quantized_decomposed)\.\w+\.\w+|_operator\.\w+")
_STRANGE_TYPE = re.compile(r'"type": "(?!builtins\.(?:tuple|list|dict)")([^"]*)"')
_SYMBOL = re.compile(r"Symbol\('[A-Za-z_]\w*'(, (positive|integer|nonnegative)=True)*\)")
_ARITHMETIC = re.compile(
    r"(?:Max|Min|Mod|FloorDiv|CeilDiv|PythonMod|Add|Mul|Pow|Integer|Rational|IntTrueDiv|ModularIndexing"
    r"|[a-z]\d+|[\s\d+*/(),-])*"
)


def write(traced: Traced, path: Path) -> None:
    """Write a program; the same one gives the same bytes.

    Raises:
        ModelError: torch cannot write it without a pickle.
    """
    program = traced.program
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta = {key: value for key, value in node.meta.items() if key in KEPT}
    program.example_inputs = None
    program._guards_code = []  # the sizes that fit are in the signature
    content = io.BytesIO()
    try:
        with quiet():
            torch.export.save(program, content, extra_files={SIGNATURE: traced.signature.to_json()})
    except Exception as error:
        raise ModelError(
            f"torch.export cannot write the network: {reason(error)}", mend="export it as `format: onnx` instead"
        ) from error
    if flaw := next(flaws(content.getvalue()), None):
        raise ModelError(f"torch.export cannot write the network safely: {flaw}", mend="use `format: onnx` instead")
    path.write_bytes(content.getvalue())


def is_integer(traced: Traced) -> bool:
    """Whether some of it computes in integers."""
    return any("quantize_per" in str(node.target) for node in traced.program.graph.nodes)


def open_file(path: Path, threads: int) -> Callable[..., Any]:
    """Open an exported program in torch; the result is called like the network.

    Raises:
        ArtifactError: the file is missing or damaged, or holds what this exporter does not write.
    """
    try:
        content = path.read_bytes()
        flaw = next(flaws(content), None)
    except Exception as error:
        raise damaged(str(path), error, missing=not path.is_file()) from error
    if flaw:
        raise ArtifactError(f"it is not opened: {flaw}", where=str(path), mend="export it again from the network")
    extra = {SIGNATURE: ""}
    try:
        with quiet():
            network = torch.export.load(io.BytesIO(content), extra_files=extra).module(check_guards=False)
    except Exception as error:
        raise damaged(str(path), error, missing=False) from error

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        with torch.no_grad(), torch_threads(threads):
            return list(network(*tensors))

    return caller(signature_in(extra[SIGNATURE] or None, str(path)), compute, "torch", str(path))


def flaws(content: bytes) -> Iterator[str]:
    """What in an archive is not as this exporter writes it, and might run code when it is opened."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        if len(entries) != len(archive.namelist()) or len({name.partition("/")[0] for name in entries.values()}) != 1:
            yield "its entries are not those of one program"
        for entry in entries:
            if entry not in (_GRAPH, _EXAMPLE, _EXTRA, *_TENSORS) and not _ENTRIES.fullmatch(entry):
                yield f"it holds {entry!r}"
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            yield "it is compressed, and may be larger than it looks"
            return
        if archive.getinfo(entries[_EXAMPLE]).file_size:
            yield "it holds example inputs, which are pickled"
        for entry in _TENSORS:
            yield from _pickled(json.loads(archive.read(entries[entry])))
        graph = json.loads(archive.read(entries[_GRAPH]))
        if graph.get("guards_code"):
            yield "its guards are code"
        yield from _suspicious(graph)


def _pickled(config: dict[str, Any]) -> Iterator[str]:
    for name, tensor in config["config"].items():
        if tensor["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", tensor["path_name"]):
            yield f"{name} is pickled"


def _suspicious(value: Any) -> Iterator[str]:
    """Operators that are not torch's, and sizes that are more than arithmetic."""
    match value:
        case dict():
            for key, entry in value.items():
                if key in ("target", "as_operator") and isinstance(entry, str) and not _OPERATORS.fullmatch(entry):
                    yield f"it calls {entry!r}"
                elif key in ("in_spec", "out_spec") and (strange := _STRANGE_TYPE.search(str(entry))):
                    yield f"it builds {strange[1]!r}"
                elif key == "expr_str" and not _ARITHMETIC.fullmatch(_SYMBOL.sub("", str(entry))):
                    yield f"a size is {entry!r}"
                else:
                    yield from _suspicious(entry)
        case list():
            for entry in value:
                yield from _suspicious(entry)
