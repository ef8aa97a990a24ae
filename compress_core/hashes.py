"""Content hashes of files, with a memory so that large data is not read again while it lies untouched.

The memory is `.compress/hashes.json`. A file whose size, modification time, change time (both in
nanoseconds) and inode are those of last time keeps its hash. A file system's clock ticks only every few
milliseconds, so an edit just after a hash was taken may leave the times as they were: a hash taken within
`SETTLED` of the file's last change is used and not remembered (the rule by which git handles its index).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from compress_core.errors import ArtifactError
from compress_core.files import digest, write_text

SETTLED = 2_000_000_000
"""Nanoseconds after its last change from which a file's hash is remembered: FAT's clock, the coarsest."""
LENGTH = 16
"""Hexadecimal digits of a hash: 64 bits, enough to notice a change."""


def hash_bytes(content: bytes) -> str:
    """The hash of a text or of anything else in memory."""
    return sha256(content).hexdigest()[:LENGTH]


def hash_tree(paths: Iterable[Path], root: Path) -> str:
    """One hash of several files, which changes with their content, their names and their number."""
    found = sha256()
    for path in sorted(paths):
        found.update(f"{path.relative_to(root).as_posix()}\0{digest(path)}\n".encode())
    return found.hexdigest()[:LENGTH]


def files_below(path: Path) -> Iterator[Path]:
    """A file itself, or the files of a folder in order, without hidden ones and compiled code."""
    if path.is_file():
        yield path
        return
    for entry in sorted(path.rglob("*")):
        inside = entry.relative_to(path).parts
        if entry.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inside):
            yield entry


class Memory:
    """What earlier calls found out about files; `save` keeps what this one asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._old = _read(path)
        self._new: dict[str, dict[str, Any]] = {"hashes": {}, "facts": {}}

    def hash_of(self, path: Path) -> str:
        """The hash of a data or weight file, taken again only if the file was touched."""
        key = str(path.resolve())
        before = _stamp(path)
        entry = self._old["hashes"].get(key)
        if isinstance(entry, list) and entry[:-1] == before and isinstance(entry[-1], str):
            self._new["hashes"][key] = entry
            return entry[-1]
        found = digest(path)[:LENGTH]
        now = time.time_ns()
        if _stamp(path) == before and all(now - changed > SETTLED for changed in before[1:3]):
            self._new["hashes"][key] = [*before, found]
        return found

    def fact(self, key: str) -> Any:
        """What was noted under a key, or None. A key must hold the hash of all that the fact rests on."""
        found = self._old["facts"].get(key)
        if found is not None:
            self._new["facts"][key] = found
        return found

    def note(self, key: str, value: Any) -> None:
        """Note a fact for later calls."""
        self._new["facts"][key] = self._old["facts"][key] = value

    def save(self) -> None:
        """Write what was asked for; a memory that cannot be written is done without."""
        if self._new == self._old and self.path.is_file():
            return
        with suppress(ArtifactError, OSError):
            write_text(self.path.parent / ".gitignore", "*\n")
            write_text(self.path, json.dumps(self._new, sort_keys=True, separators=(",", ":")) + "\n")


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The memory's file; one that is missing or damaged is an empty memory."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"hashes": dict(found["hashes"]), "facts": dict(found["facts"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"hashes": {}, "facts": {}}
