"""Export to ONNX, OpenVINO and torch.export, and to whichever of them runs a network the fastest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from compress_core import hookimpl
from compress_core.catalog import catalog
from compress_core.errors import ModelError
from compress_core.parts import Exporter, Part

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from compress_core.run import Run

FILE = "model.onnx"
PROGRAM = "model.pt2"
EXTRA = "compress-core[openvino]"

Example = tuple[tuple[Any, ...], dict[str, Any]]


class FreeAxes(Exporter):
    """An exporter of networks whose batch may have any size, and further axes on request."""

    dynamic: tuple[int, ...] = ()
    """Axes beside the batch that may have any size in the file, in every input that has them: `[1]` for the words of
    (examples, words). The network itself must take any size there, up to a limit that the manifest then names."""

    @field_validator("dynamic")
    @classmethod
    def _further(cls, axes: tuple[int, ...]) -> tuple[int, ...]:
        if any(axis < 1 for axis in axes) or len(set(axes)) < len(axes):
            raise ValueError("each axis once, counted from 1; the batch, 0, has any size anyway")
        return tuple(sorted(axes))


class ThroughOnnx(FreeAxes):
    """An exporter whose files are made of an ONNX model."""

    opset: int = Field(default=20, ge=18, le=23)
    """The version of ONNX's operators. Older runtimes want lower ones."""

    @abstractmethod
    def write(self, proto: onnx.ModelProto, folder: Path) -> float:
        """Write the files, and return by how much a network with integers may differ in their runtime."""

    def export(self, model: nn.Module, folder: Path, example: Example) -> Mapping[str, Any]:
        """Write the network's files into `folder`.

        Returns:
            The files' inputs and outputs.

        Raises:
            ModelError: the network cannot be traced or written, or the runtime is missing or computes something else.
        """
        from compress_export.conversion import convert, has_integers
        from compress_export.tracing import on_cpu
        from compress_export.verification import FLOAT_ERROR, verify

        model, example = on_cpu(model, example)
        proto, signature = convert(model, example, self.opset, self.dynamic)
        folder.mkdir(parents=True, exist_ok=True)
        error = self.write(proto, folder)
        verify(
            self.load(folder, 1),
            model,
            example,
            allowed=error if has_integers(proto) else FLOAT_ERROR,
            free=self.dynamic,
        )
        return signature.about()


class Onnx(ThroughOnnx):
    """One ONNX file for any size of the batch, run by onnxruntime.

    Integers stay integers: what `quantize` made becomes QuantizeLinear and DequantizeLinear around int8
    weights, which onnxruntime joins into integer kernels. Every export is checked: the file's outputs must
    agree with the network's at several sizes of the batch.
    """

    name = "onnx"

    def write(self, proto: onnx.ModelProto, folder: Path) -> float:
        """Write `model.onnx`."""
        from compress_export.verification import INTEGER_ERROR

        (folder / FILE).write_bytes(proto.SerializeToString(deterministic=True))
        return INTEGER_ERROR

    def load(self, folder: Path, threads: int) -> Callable[..., Any]:
        """Open `model.onnx` in onnxruntime; the result is called like the network and gives what it gives.

        A dataclass that the network gives becomes a dictionary whose entries are attributes as well.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        from compress_export.runtime import open_file

        return open_file(folder / FILE, threads)


class OpenVino(ThroughOnnx):
    """OpenVINO's intermediate representation, `model.xml` and `model.bin`, run by its CPU plugin.

    Real numbers stay float32 where OpenVINO would take bfloat16, and int8 layers run in int8 kernels. Needs the extra
    `openvino`. The file is checked like that of `onnx`.
    """

    name = "openvino"

    opset: int = Field(default=20, ge=18, le=23)
    """The version of ONNX's operators through which the network goes."""

    @classmethod
    def missing(cls) -> str:
        """The extra, if OpenVINO is not installed."""
        return "" if find_spec("openvino") else EXTRA

    def export(self, model: nn.Module, folder: Path, example: Example) -> Mapping[str, Any]:
        """Write `model.xml` and `model.bin` into `folder`.

        Returns:
            The files' inputs and outputs.

        Raises:
            ModelError: OpenVINO is missing, cannot read the network, or computes something else.
        """
        self._check_installed()
        return super().export(model, folder, example)

    def write(self, proto: onnx.ModelProto, folder: Path) -> float:
        """Write `model.xml` and `model.bin`."""
        from compress_export.openvino_ir import write
        from compress_export.verification import FUSED_ERROR

        write(proto, folder)
        return FUSED_ERROR

    def load(self, folder: Path, threads: int) -> Callable[..., Any]:
        """Open the files in OpenVINO; the result is called like the network and gives what it gives.

        Raises:
            ModelError: OpenVINO is missing.
            ArtifactError: a file is missing or damaged.
        """
        self._check_installed()
        from compress_export.openvino_ir import open_folder

        return open_folder(folder, threads)

    def _check_installed(self) -> None:
        if lack := self.missing():
            raise ModelError("OpenVINO is not installed", where=self.name, mend=f"pip install '{lack}'")


class TorchProgram(FreeAxes):
    """A program of torch.export, `model.pt2`, run by torch without the network's Python code.

    It runs at the speed of eager torch and is there for what goes on from a program: AOTInductor, ExecuTorch, the next
    compiler. Nothing in it is pickled, and a file that holds a pickle is not opened.
    """

    name = "torch-program"

    def export(self, model: nn.Module, folder: Path, example: Example) -> Mapping[str, Any]:
        """Write `model.pt2` into `folder`.

        Returns:
            The file's inputs and outputs.

        Raises:
            ModelError: the network cannot be traced or written, or the program computes something else.
        """
        from compress_export.program import is_integer, write
        from compress_export.tracing import on_cpu, trace
        from compress_export.verification import FLOAT_ERROR, INTEGER_ERROR, verify

        model, example = on_cpu(model, example)
        traced = trace(model, example, self.dynamic)
        folder.mkdir(parents=True, exist_ok=True)
        write(traced, folder / PROGRAM)
        verify(
            self.load(folder, 1),
            model,
            example,
            allowed=INTEGER_ERROR if is_integer(traced) else FLOAT_ERROR,
            free=self.dynamic,
        )
        return traced.signature.about()

    def load(self, folder: Path, threads: int) -> Callable[..., Any]:
        """Open `model.pt2` in torch; the result is called like the network and gives what it gives.

        Raises:
            ArtifactError: the file is missing, damaged, or holds something that might run code.
        """
        from compress_export.program import open_file

        return open_file(folder / PROGRAM, threads)


class Fastest(Exporter):
    """The format in which the network runs the fastest on this machine, without losing quality.

    The network is exported in each candidate's format and measured in its runtime, by turns, beside itself in eager
    torch. Formats of other plugins may be candidates. What every candidate took, and why it was not chosen, is told
    and stands in the manifest with the choice; another machine may choose another.
    """

    name = "fastest"

    candidates: tuple[str, ...] = ("onnx", "openvino")
    """The formats that compete, at least one. One that cannot hold the network, or is not installed, is left out."""
    max_loss: float = Field(default=0.5, ge=0)
    """Points of validation quality that a file may lose to the network in torch."""
    batch: int = Field(default=1, ge=1)
    """Examples per call when time is measured."""

    @model_validator(mode="after")
    def _known(self) -> Fastest:
        if not self.candidates:
            raise ValueError("`candidates` is empty: name formats, as in [onnx, openvino]")
        for name in self.candidates:
            if name == self.name or name not in catalog().exporters:
                known = [kind for kind in catalog().exporters if kind != self.name]
                advice = catalog().unknown("export format", name, known)
                raise ValueError(f"{name!r} cannot be a candidate: {advice}")
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The candidates."""
        return tuple(catalog().exporters[name]() for name in self.candidates)

    def chosen(self, model: nn.Module, run: Run) -> Exporter:
        """Measure the candidates and return the fastest that keeps the quality.

        Raises:
            ModelError: none of them does.
        """
        from compress_export.choosing import fastest

        return fastest(model, {name: catalog().exporters[name]() for name in self.candidates}, self, run)

    def export(self, model: nn.Module, folder: Path, example: Example) -> Mapping[str, Any] | None:
        """Never called: what is exported is exported by the chosen format."""
        raise ModelError(
            "the fastest format is found by measuring on data", where=self.name, mend="name a format, as `onnx`"
        )

    def load(self, folder: Path, threads: int) -> Callable[..., Any]:
        """Open the files in the format that was chosen when they were written.

        Raises:
            ArtifactError: the manifest is missing, or names a format that is not installed.
        """
        from compress_export.choosing import format_of

        return catalog().exporters[format_of(folder)]().load(folder, threads)


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The exporters of this plugin."""
    return [Onnx, OpenVino, TorchProgram, Fastest]
