"""A new checkpoint: the headers first, since all sizes are known, then each tensor as it comes.

A name that ends with `.safetensors` is one file; any other is a folder with one file or several shards and their
index, as Hugging Face writes them. Either is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from compress_core.checkpoints.headers import Tensor, write_header
from compress_core.checkpoints.numbers import Raw
from compress_core.checkpoints.reading import INDEX, SUFFIX, Reader
from compress_core.checkpoints.rewriting import Job
from compress_core.errors import ArtifactError
from compress_core.files import replacing, to_json, write_text, writing

SHARD = 5_000_000_000
"""Bytes of the tensors of a shard, unless told otherwise."""

Watch = Callable[[int, int], None]
"""Is told how many bytes have just been written, and how many there will be."""


def refuse_taken(target: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ArtifactError: it is the source, or anything else.
    """
    if os.path.lexists(target):
        raise ArtifactError("there is something already", where=str(target), mend="name a new file or folder")


def write_checkpoint(
    target: Path,
    jobs: Sequence[Job],
    *,
    metadata: Mapping[str, str],
    stem: str,
    shard_size: int | None = None,
    beside: Mapping[str, Path | str] | None = None,
    watch: Watch = lambda done, total: None,
) -> int:
    """Do the jobs, and give the bytes of the files with tensors.

    Args:
        target: the new file or folder.
        jobs: what is written, in this order.
        metadata: of every file.
        stem: of the names of files in a folder.
        shard_size: bytes of a shard's tensors; a larger tensor has a shard of its own.
        beside: files, or their text, that are put into a folder under these names.
        watch: follows the work.

    Raises:
        ArtifactError: the place is taken or cannot be written, the disk is full, or a tensor cannot be rewritten.
    """
    refuse_taken(target)
    single = target.name.endswith(SUFFIX)
    if single and shard_size is not None:
        raise ArtifactError("one file has no shards", where=str(target), mend="name a folder, or leave their size out")
    shards = [list(jobs)] if single else _shards(jobs, shard_size or SHARD)
    total = sum(tensor.bytes for job in jobs for tensor in job.outputs)
    _refuse_little_space(target, total)
    tell = partial(_tell, watch, total)
    with Reader() as reader:
        if single:
            with _one_file(target) as part:
                return _write_file(part, shards[0], metadata, reader, tell)
        with replacing(target) as folder:
            names = [f"{stem}{_number(index, len(shards))}{SUFFIX}" for index in range(len(shards))]
            size = sum(
                _write_file(folder / name, shard, metadata, reader, tell)
                for name, shard in zip(names, shards, strict=True)
            )
            if len(shards) > 1:
                write_text(folder / f"{stem}{INDEX}", _index(names, shards, total))
            _put_beside(folder, beside or {})
            return size


def _tell(watch: Watch, total: int, done: int) -> None:
    watch(done, total)


def _shards(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """The jobs of each shard: as many in their order as fit, a tensor and its scales together."""
    shards: list[list[Job]] = [[]]
    filled = 0
    for job in jobs:
        more = sum(tensor.bytes for tensor in job.outputs)
        if shards[-1] and filled + more > size:
            shards.append([])
            filled = 0
        shards[-1].append(job)
        filled += more
    return shards


def _number(index: int, count: int) -> str:
    return "" if count == 1 else f"-{index + 1:05d}-of-{count:05d}"


def _index(names: Sequence[str], shards: Sequence[Sequence[Job]], total: int) -> str:
    files = {
        tensor.name: name for name, shard in zip(names, shards, strict=True) for job in shard for tensor in job.outputs
    }
    return to_json({"metadata": {"total_size": total}, "weight_map": files})


def _write_file(
    path: Path, jobs: Sequence[Job], metadata: Mapping[str, str], reader: Reader, tell: Callable[[int], None]
) -> int:
    """Write one file, and give its bytes."""
    tensors: list[Tensor] = [tensor for job in jobs for tensor in job.outputs]
    header, begins = write_header(tensors, metadata)
    with path.open("wb", buffering=0) as stream:
        handle = stream.fileno()

        def put(name: str, offset: int, raw: Raw) -> None:
            _write_at(handle, raw.data, begins[name] + offset)
            tell(len(raw))

        _write_at(handle, memoryview(header), 0)
        for job in jobs:
            job.run(reader, put)
        os.fsync(handle)
        return os.fstat(handle).st_size


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done


@contextmanager
def _one_file(target: Path) -> Iterator[Path]:
    """A sibling that becomes `target` if the block ends well."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            part.chmod(0o644)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)


def _put_beside(folder: Path, beside: Mapping[str, Path | str]) -> None:
    for name, content in beside.items():
        if isinstance(content, str):
            write_text(folder / name, content)
        else:
            shutil.copyfile(content, folder / name)


def _refuse_little_space(target: Path, needed: int) -> None:
    folder = next((place for place in target.absolute().parents if place.is_dir()), Path("/"))
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return
    if disk.total and disk.free < needed:
        raise ArtifactError(
            f"it will have {needed:,} bytes and {disk.free:,} are free",
            where=str(target),
            mend="free space, or write to another disk",
        )
