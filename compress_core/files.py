"""Folders written whole or not at all, and the manifest that every artifact has.

`manifest.json` names each file beside it with its size and SHA-256. Nothing in it depends on the time, the
place or the machine, so the same content has the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_core.errors import ArtifactError
from compress_core.sharing import apart

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Tell an error of the disk with the place that cannot be written.

    Raises:
        ArtifactError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"cannot be written: {error.strerror or error}", where=str(target), mend="free space or change the rights"
        ) from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give an empty sibling folder that takes the place of `target` if the block ends well.

    What was there before is moved aside by a rename, so that it is never there in part.

    Raises:
        ArtifactError: the disk is full, or the place cannot be written.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        before = temporary.with_name(f"{temporary.name}.part")
        try:
            temporary.chmod(0o755)
            yield temporary
            if target.exists():
                target.rename(before)
            try:
                temporary.rename(target)
            except OSError:
                if before.exists():
                    before.rename(target)
                raise
        except ArtifactError as error:
            error.where = error.where.replace(str(temporary), str(target))
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace what is no artifact: whatever else lies there would be lost.

    Raises:
        ArtifactError: there is a file, or a folder that holds other things.
    """
    taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file())
    if taken:
        raise ArtifactError("it holds other files, which would be lost", where=str(folder), mend="name a new folder")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ArtifactError: the disk is full, or the place cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def to_json(value: Any) -> str:
    """JSON with sorted keys, the same text for the same value."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, without metadata, whose order is not stable between processes.

    Tensors that share memory are written as copies.

    Raises:
        ArtifactError: the disk is full, or the place cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with writing(path):
        try:
            save_file(apart(tensors), path)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    found = sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a folder whose other files are complete."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_text(folder / MANIFEST, to_json({"format": FORMAT, **content, "files": files}))


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read the manifest of a folder and check every file against it.

    Raises:
        ArtifactError: it is missing, of another format or kind, or a file beside it is missing or altered.
    """
    where = str(folder)
    again = "make it again with `dvc repro`, or fetch it again with `dvc pull`"
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        found_format, found_kind = manifest["format"], manifest["kind"]
    except FileNotFoundError:
        raise ArtifactError(f"there is no {MANIFEST}", where=where, mend=again) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{MANIFEST} is damaged: {error!r}", where=where, mend=again) from error
    if found_format != FORMAT:
        raise ArtifactError(
            f"it has format {found_format!r}; this version reads {FORMAT}", where=where, mend="make it again"
        )
    if kind is not None and found_kind != kind:
        raise ArtifactError(f"it holds {found_kind!r}, not {kind!r}", where=where, mend=again)
    for name, (size, checksum) in listed.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{MANIFEST} names a file outside the folder: {name!r}", where=where, mend=again)
        if not path.is_file():
            raise ArtifactError(f"{name} is missing", where=where, mend=again)
        if path.stat().st_size != size:
            raise ArtifactError(f"{name} has {path.stat().st_size} bytes instead of {size}", where=where, mend=again)
        if digest(path) != checksum:
            raise ArtifactError(f"{name} was altered: its checksum differs", where=where, mend=again)
    return manifest
