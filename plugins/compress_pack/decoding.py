"""From a packed file to its tensors and its manifest, with numpy and constriction alone.

    b"cpk" version   lengths   header   raw bytes   coded bytes   CRC-32 of all before

The lengths are LEB128 numbers: of the restored tensors, of the header when inflated and as it lies there, of the raw
and of the coded bytes. The header is deflated JSON, `[manifest, [[name, dtype, shape], ...]]`; tensors follow one
another in that order. There is one range coder for all of them.

Nothing is allocated before it has been bounded: a file restores to no more than 8 MB or 4096 times its own length, and
its header inflates to no more than 1 MB or 8 times that length. A writer pads what would restore to more.

Cost: at least 20 MB of restored float32 weights a second on one core.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_pack.streams import DamagedError, Reader, Words
from compress_pack.tensors import ITEM_SIZES, code_tensor

__all__ = ["DamagedError", "Stored", "decode", "unpack"]

MAGIC = b"cpk"
VERSION = 1
LEAST_RESTORED, MOST_RESTORED = 8 << 20, 4096
"""Bytes that any file may restore to, and bytes for each of its own."""
LEAST_HEADER, MOST_HEADER = 1 << 20, 8
KNOWN = (
    b'"masked":["provenance":{"ties":{"trains":{"op":"setattr","op":"drop_tensor","op":"remove","op":"adopt",'
    b'"arguments":{"bias":false,"track_running_stats":true,"affine":true,"eps":1e-05,"momentum":0.1,'
    b'"padding_mode":"zeros","dilation":1,"groups":1,"kernel_size":[3,3],"padding":[1,1],"stride":[1,1],'
    b'"in_channels":,"out_channels":,"num_features":,"in_features":,"out_features":,"num_batches_tracked","I64",[]],'
    b'"running_mean","running_var","op":"tensors","path":"","tensors":{"weight":{"dtype":"torch.float32",'
    b'"kind":"parameter","shape":["op":"replace","path":"","module":{"arguments":{"type":"torch.nn.modules.linear.'
    b'Linear"torch.nn.modules.conv.Conv2d"torch.nn.modules.batchnorm.BatchNorm2d"layers.0.weight","I8",'
    b'["conv1.weight","conv2.bias","head.bias","F32",["fc1.weight","fc2.weight","fc3.weight"],"fc3.bias",'
    b'[{"edits":[],"factory":"compress_zoo:","format":1,"kind":"model","masked":[],"params":{},"provenance":{},'
    b'"ties":{},"trains":{}},[["'
)
"""What headers often hold, for deflate to point to."""

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"{letter}{8 * size}": np.dtype(f"{kind}{size}") for letter, kind in ("Uu", "Ii", "Ff") for size in (2, 4, 8)},
    "U8": np.uint8,
    "I8": np.int8,
    "C64": np.complex64,
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a packed file."""

    name: str
    dtype: str
    """What safetensors calls it."""
    shape: tuple[int, ...]
    words: Words
    """Its numbers as unsigned integers of their width, (values,)."""

    @property
    def array(self) -> NDArray[Any]:
        """The tensor; bfloat16 and 8-bit floats, which numpy lacks, as the unsigned integers of their bits."""
        found: NDArray[Any] = self.words.view(_DTYPES.get(self.dtype, self.words.dtype)).reshape(self.shape)
        return found


@dataclass(frozen=True)
class Sections:
    """A file whose lengths and checksum are right."""

    restored: int
    header: list[Any]
    raw: memoryview
    coded: memoryview


def decode(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of a packed file by name, and its manifest.

    Raises:
        DamagedError: the file is cut off, altered, or no packed file.
    """
    manifest, tensors = unpack(data)
    return {tensor.name: tensor.array for tensor in tensors}, manifest


def unpack(data: bytes) -> tuple[dict[str, Any], list[Stored]]:
    """The manifest of a packed file, without its list of files, and the tensors in the order of the artifact.

    Raises:
        DamagedError: the file is cut off, altered, or no packed file.
    """
    sections = _sections(data)
    manifest, entries = _checked(sections)
    reader = Reader(sections.raw, sections.coded)
    return manifest, [
        Stored(name, dtype, shape, code_tensor(reader, dtype, shape, None)) for name, dtype, shape in entries
    ]


def _sections(data: bytes) -> Sections:
    if data[: len(MAGIC)] != MAGIC:
        raise DamagedError("it is no packed file")
    if len(data) < len(MAGIC) + 5:
        raise DamagedError("it ends too early")
    if data[len(MAGIC)] != VERSION:
        raise DamagedError(f"it has version {data[len(MAGIC)]}; this one reads {VERSION}")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise DamagedError("it was altered: its checksum differs")
    numbers = _numbers(data, len(MAGIC) + 1)
    restored, inflated, *lengths = (next(numbers)[0] for _ in range(4))
    coded, at = next(numbers)
    header, raw = lengths
    if at + header + raw + coded + 4 != len(data):
        raise DamagedError("its lengths do not add up")
    if restored > max(LEAST_RESTORED, MOST_RESTORED * len(data)):
        raise DamagedError(f"it says that it holds {restored:,} bytes, more than a file of its length can")
    if inflated > max(LEAST_HEADER, MOST_HEADER * len(data)):
        raise DamagedError(f"it says that its header has {inflated:,} bytes, more than a file of its length can have")
    view = memoryview(data)
    read = _header(data[at : at + header], inflated)
    at += header
    return Sections(restored, read, view[at : at + raw], view[at + raw : at + raw + coded])


def _numbers(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """The LEB128 numbers of some bytes, each with the place behind it."""
    while True:
        value = 0
        for place in range(9):
            if at >= len(data):
                raise DamagedError("it ends too early")
            value |= (data[at] & 127) << 7 * place
            at += 1
            if data[at - 1] < 128:
                break
        else:
            raise DamagedError("one of its lengths is too long")
        yield value, at


def _header(deflated: bytes, size: int) -> list[Any]:
    try:
        inflater = zlib.decompressobj(-15, KNOWN)
        text = inflater.decompress(deflated, size + 1)
        found = json.loads(text.decode("utf-8"))
    except (zlib.error, ValueError, RecursionError) as error:
        raise DamagedError("its header cannot be read") from error
    if len(text) != size or not isinstance(found, list) or len(found) != 2:
        raise DamagedError("its header cannot be read")
    return found


def _checked(sections: Sections) -> tuple[dict[str, Any], list[tuple[str, str, tuple[int, ...]]]]:
    """The manifest, and the tensors whose sizes add up to what the file says that it restores to."""
    manifest, listed = sections.header
    if not isinstance(manifest, dict) or not isinstance(listed, list):
        raise DamagedError("its header cannot be read")
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    total = 0
    for entry in listed:
        match entry:
            case [str(name), str(dtype), list(shape)] if dtype in ITEM_SIZES and all(_is_size(n) for n in shape):
                total += ITEM_SIZES[dtype] * prod(shape)
                entries.append((name, dtype, tuple(shape)))
            case _:
                raise DamagedError("its header lists something that is no tensor")
    if total != sections.restored or any(prod(filter(None, shape)) > 2**62 for _, _, shape in entries):
        raise DamagedError("the sizes of its tensors do not add up")
    if len({name for name, _, _ in entries}) != len(entries):
        raise DamagedError("two of its tensors have one name")
    return manifest, entries


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62
