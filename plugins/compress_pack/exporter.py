"""`use: {export: {format: packed}}`: the whole artifact in one entropy-coded file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress_core import hookimpl
from compress_core.errors import ArtifactError, ModelError
from compress_core.parts import Exporter, Technique
from compress_pack.grid import Grid
from compress_pack.permute import Permute

if TYPE_CHECKING:
    from torch import nn

    from compress_pack.decoding import Stored

FILE = "model.cpk"
_AGAIN = "export it again with `dvc repro`, or fetch it again with `dvc pull`"


class Packed(Exporter):
    """One entropy-coded file, for storage and transfer, that holds the whole artifact bit for bit.

    Positions of weights that are left, codes and exponents are coded by models that learn while they go; everything
    is counted: header, architecture, tables, biases. To run it, it is unpacked into memory and computed by torch: what
    is measured is torch's speed. `compress unpack` gives the artifact back.
    """

    name = "packed"
    magic: ClassVar[bytes] = b"cpk"

    def export(self, model: nn.Module, folder: Path, example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        """Write `model.cpk` into `folder`.

        Raises:
            ModelError: nobody knows which factory has built the network.
            ArtifactError: something in the network cannot be represented.
        """
        from compress_core.factory import ORIGIN
        from compress_pack.artifacts import packed_artifact

        if ORIGIN not in model.__dict__:
            raise ModelError(
                "it does not say which factory has built it",
                mend="build it with compress_core.factory.build_model, or load it from an artifact",
            )
        factory, params = model.__dict__[ORIGIN]
        data = packed_artifact(model, factory, params)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(data)

    def load(self, folder: Path, threads: int) -> Callable[..., Any]:
        """Unpack `model.cpk` into memory; the result is called like the network and runs in torch, on the CPU.

        Raises:
            ArtifactError: the file is missing or damaged, or the factory within is not trusted.
        """
        from compress_pack.artifacts import restored_network, runtime

        manifest, tensors = _unpacked(folder / FILE)
        return runtime(restored_network(manifest, tensors, folder / FILE), threads)

    def unpack(self, file: Path, folder: Path) -> None:
        """Restore the artifact that a file holds.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        from compress_pack.artifacts import write_artifact

        write_artifact(*_unpacked(file), folder)


def _unpacked(file: Path) -> tuple[dict[str, Any], list[Stored]]:
    from compress_pack.decoding import DamagedError, unpack

    try:
        return unpack(file.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}", where=str(file), mend=_AGAIN) from error
    except DamagedError as error:
        raise ArtifactError(str(error), where=str(file), mend=_AGAIN) from error


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The exporters of this plugin."""
    return [Packed]


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Grid, Permute]
