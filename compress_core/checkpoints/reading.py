"""A checkpoint on disk: one safetensors file, or a folder of shards with an index as Hugging Face writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compress_core.checkpoints.headers import AGAIN, Place, read_header
from compress_core.checkpoints.numbers import Raw
from compress_core.errors import ArtifactError, suggest
from compress_core.files import MANIFEST

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
WEIGHTS = frozenset({SUFFIX, ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".part"})
"""Suffixes of files that hold weights once more and are not taken along."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, without the tensors' bytes."""

    path: Path
    stem: str
    """Of the files' names: `model` in `model-00001-of-00002.safetensors`."""
    places: tuple[Place, ...]
    """In the order of the files, and in each in the order of the bytes."""
    metadata: dict[str, str]
    beside: tuple[Path, ...] = ()
    """Other files of the folder: the configuration, the tokenizer."""

    @property
    def bytes(self) -> int:
        """Of the files that hold tensors."""
        return sum(file.stat().st_size for file in {place.file for place in self.places})

    @property
    def by_name(self) -> dict[str, Place]:
        """The places by the names of their tensors."""
        return {place.tensor.name: place for place in self.places}


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint.

    Raises:
        ArtifactError: there is none, it is damaged, or a folder leaves open which file is meant.
    """
    if not path.is_dir():
        places, metadata = read_header(path)
        return _checked(Checkpoint(path, path.name.removesuffix(SUFFIX), tuple(places), metadata))
    if (path / MANIFEST).is_file():
        mend = f"put `quantize` into a step of the recipe, or name a file in the folder that ends with {SUFFIX}"
        raise ArtifactError(
            "it is the artifact of a step, whose manifest would no longer fit", where=str(path), mend=mend
        )
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    index = _only([file for file in files if file.name.endswith(INDEX)], path)
    beside = tuple(file for file in files if file.suffix not in WEIGHTS and file != index)
    if index is None:
        whole = _only([file for file in files if file.suffix == SUFFIX], path)
        if whole is None:
            raise ArtifactError(
                f"it holds no file that ends with {SUFFIX}", where=str(path), mend="name another folder"
            )
        places, metadata = read_header(whole)
        return _checked(Checkpoint(path, whole.name.removesuffix(SUFFIX), tuple(places), metadata, beside))
    return _checked(_sharded(path, index, beside))


def _sharded(path: Path, index: Path, beside: tuple[Path, ...]) -> Checkpoint:
    listed = _weight_map(index)
    places: list[Place] = []
    metadata: dict[str, str] = {}
    for name in sorted(set(listed.values())):
        found, about = read_header(path / name)
        places += found
        metadata |= about
    held = {place.tensor.name: place.file.name for place in places}
    if held != listed or len(held) != len(places):
        wrong = sorted(name for name in held.keys() | listed.keys() if held.get(name) != listed.get(name))
        what = f"index and shards differ in {wrong[0]!r}" if wrong else "a tensor lies in two shards"
        raise ArtifactError(what, where=str(index), mend="fetch the whole folder again")
    return Checkpoint(path, index.name.removesuffix(INDEX), tuple(places), metadata, beside)


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by name."""
    try:
        listed: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(listed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"the index is damaged: {error!r}", where=str(index), mend=AGAIN) from error
    if wrong := [name for name in files if not isinstance(name, str) or Path(name).name != name]:
        raise ArtifactError(f"it names a file outside the folder: {wrong[0]!r}", where=str(index), mend=AGAIN)
    return dict(listed)


def _checked(found: Checkpoint) -> Checkpoint:
    if not found.places:
        raise ArtifactError("it holds no tensor", where=str(found.path), mend="name another checkpoint")
    return found


def _only(found: list[Path], folder: Path) -> Path | None:
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ArtifactError(f"it holds several: {names}", where=str(folder), mend="name one of the files")
    return found[0] if found else None


@dataclass
class Reader:
    """Reads the bytes of tensors, a piece at a time; each file is opened once."""

    open_files: dict[Path, BinaryIO] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def read(self, place: Place, begin: int, count: int) -> Raw:
        """So many bytes of a tensor.

        Raises:
            ArtifactError: the file is shorter than it was, or the disk cannot be read.
        """
        raw = np.empty(count, np.uint8)
        left = raw.data
        try:
            if place.file not in self.open_files:
                self.open_files[place.file] = self.stack.enter_context(place.file.open("rb", buffering=0))
            stream = self.open_files[place.file]
            stream.seek(place.begin + begin)
            while left and (done := stream.readinto(left)):  # type: ignore[attr-defined]
                left = left[done:]
        except OSError as error:
            raise ArtifactError(f"cannot be read: {error.strerror}", where=str(place.file), mend=AGAIN) from error
        if left:
            raise ArtifactError("it was cut off while it was read", where=str(place.file), mend=AGAIN)
        return raw

    def pieces(self, place: Place, size: int) -> Iterator[tuple[int, Raw]]:
        """All bytes of a tensor in pieces of a size, each with its offset."""
        total = place.tensor.bytes
        for begin in range(0, total, size):
            yield begin, self.read(place, begin, min(size, total - begin))


def fitting(names: list[str], patterns: tuple[str, ...], option: str) -> set[str]:
    """The names that fit one of the patterns, in which `*` stands for anything.

    Raises:
        ArtifactError: a pattern fits no name.
    """
    from fnmatch import fnmatchcase

    found: set[str] = set()
    for pattern in patterns:
        fit = {name for name in names if fnmatchcase(name, pattern)}
        if not fit:
            raise ArtifactError(f"the pattern {pattern!r} fits no tensor", where=option, mend=suggest(pattern, names))
        found |= fit
    return found
