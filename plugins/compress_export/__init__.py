"""Export to ONNX, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress_core import hookimpl
from compress_core.errors import ModelError
from compress_core.parts import Exporter

if TYPE_CHECKING:
    from torch import nn

FILE = "model.onnx"
LARGEST = 2**31 - 1
"""The bytes that one ONNX file can have."""


class Onnx(Exporter):
    """One ONNX file for any size of the batch, run by onnxruntime.

    Integers stay integers: what `quantize` made becomes QuantizeLinear and DequantizeLinear around int8
    weights, which onnxruntime joins into integer kernels. Every export is checked: the file's outputs must
    agree with the network's at several sizes of the batch.
    """

    name = "onnx"

    opset: int = Field(default=20, ge=18, le=23)
    """The version of ONNX's operators. Older runtimes want lower ones."""

    def export(self, model: nn.Module, folder: Path, example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        """Write `model.onnx` into `folder`.

        Raises:
            ModelError: the network cannot be traced or written, or onnxruntime computes something else.
        """
        import onnx

        from compress_export.conversion import convert, on_cpu
        from compress_export.verification import verify

        model, example = on_cpu(model, example)
        proto = convert(model, example, self.opset)
        if proto.ByteSize() > LARGEST:
            raise ModelError(
                f"it takes {proto.ByteSize():,} bytes, and an ONNX file holds at most {LARGEST:,}",
                mend="quantize or prune the network first",
            )
        try:
            onnx.checker.check_model(proto, full_check=True)
        except Exception as error:
            raise ModelError(f"the exported file is not valid ONNX: {error}", mend="try another `opset`") from error
        path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        verify(path, model, example)

    def load(self, folder: Path, threads: int) -> Callable[..., Any]:
        """Open `model.onnx` in onnxruntime; the result is called like the network and gives what it gives.

        A dataclass that the network gives becomes a dictionary whose entries are attributes as well.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        from compress_export.runtime import open_file

        return open_file(folder / FILE, threads)


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The exporters of this plugin."""
    return [Onnx]
