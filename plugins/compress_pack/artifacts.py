"""Between a network, the artifact that holds it, and the packed file of the artifact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.artifact import TENSORS, load, save
from compress_core.errors import ArtifactError
from compress_core.files import FORMAT, MANIFEST, refuse_foreign, replacing, write_manifest
from compress_core.modes import torch_threads
from compress_pack.decoding import Stored, unpack
from compress_pack.encoding import pack, read_tensors, write_tensors


def packed_artifact(model: nn.Module, factory: str, params: Mapping[str, Any]) -> bytes:
    """The packed file of a network, which has been unpacked once and found the same.

    Raises:
        ArtifactError: something in the network cannot be represented or packed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        try:
            save(model, folder, factory=factory, params=params)
        except ArtifactError as error:
            error.where = ""
            raise
        data = (folder / TENSORS).read_bytes()
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    try:
        packed = pack(manifest, read_tensors(data))
    except KeyError as error:
        raise ArtifactError(
            f"numbers of the format {error.args[0]} cannot be packed", mend="convert them to another format"
        ) from error
    if write_tensors(unpack(packed)[1]) != data:
        raise ArtifactError("its tensors do not survive the packing", mend="please report this as a bug of ours")
    return packed


def write_artifact(manifest: Mapping[str, Any], tensors: Sequence[Stored], folder: Path) -> None:
    """Write the artifact that a packed file holds; `folder` is replaced whole.

    Raises:
        ArtifactError: the place cannot be written, or the manifest is of another format.
    """
    if manifest.get("format") != FORMAT or manifest.get("kind") != "model":
        raise ArtifactError(
            f"it holds {manifest.get('kind')!r} of format {manifest.get('format')!r}; "
            f"this version reads 'model' of format {FORMAT}",
            mend="make it again",
        )
    refuse_foreign(folder)
    with replacing(folder) as temporary:
        (temporary / TENSORS).write_bytes(write_tensors(tensors))
        write_manifest(temporary, {key: value for key, value in manifest.items() if key != "files"})


def restored_network(manifest: Mapping[str, Any], tensors: Sequence[Stored], file: Path) -> nn.Module:
    """The network of a packed file.

    Raises:
        ArtifactError: its factory is not trusted, or does not fit any more.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        try:
            write_artifact(manifest, tensors, folder)
            return load(folder)
        except ArtifactError as error:
            error.where = str(file)
            raise


def runtime(model: nn.Module, threads: int) -> Callable[..., Any]:
    """A call of a network in torch on the CPU, without gradients."""

    @torch.no_grad()
    def call(*arguments: Any, **keywords: Any) -> Any:
        with torch_threads(threads):
            return model(*_on_cpu(arguments), **_on_cpu(keywords))

    return call


def _on_cpu(value: Any) -> Any:
    match value:
        case Tensor():
            return value.cpu()
        case Mapping():
            return {key: _on_cpu(entry) for key, entry in value.items()}
        case tuple() if not hasattr(value, "_fields"):
            return tuple(_on_cpu(entry) for entry in value)
        case list():
            return [_on_cpu(entry) for entry in value]
        case _:
            return value
