"""The safetensors format: 8 bytes of length, a JSON header, then the bytes of the tensors without a gap.

    {"NAME": {"dtype": "F32", "shape": [out, in], "data_offsets": [begin, end]}, …, "__metadata__": {"format": "pt"}}

Everything that a header says is checked against the size of its file before any memory is taken for it. Written
headers list tensors by falling size of their numbers, so that each begins at a multiple of it, and are padded to 8.

Source: the format's description in the safetensors repository, README, section "Format".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from compress_core.errors import ArtifactError

BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""The formats of numbers, and the bits of one."""
LARGEST_HEADER = 25_000_000
"""Bytes; some two hundred thousand tensors. More is taken for damage, for JSON may need forty times its size."""
MOST_AXES = 64
"""Of a tensor; numpy's limit."""
LARGEST = 1 << 63
"""Bytes and numbers, which no tensor reaches."""
METADATA = "__metadata__"
AGAIN = "fetch or write the file again"


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self.count * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    tensor: Tensor
    file: Path
    begin: int
    """Of its bytes in the file."""


def read_header(file: Path) -> tuple[list[Place], dict[str, str]]:
    """The tensors of a file in the order of their bytes, and its metadata.

    Raises:
        ArtifactError: the file cannot be read, is cut off, or is no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise _damaged(file, f"it has {size} bytes and its header is said to have {length}")
            if length > LARGEST_HEADER:
                raise _damaged(file, f"its header is said to have {length} bytes, more than {LARGEST_HEADER}")
            text = stream.read(length)
    except OSError as error:
        mend = "name a safetensors file, or a folder that holds one"
        raise ArtifactError(f"cannot be read: {error.strerror}", where=str(file), mend=mend) from error
    try:
        content = json.loads(text, object_pairs_hook=_without_doubles)
        if not isinstance(content, dict):
            raise ValueError("it is no list of tensors by name")
        metadata = _metadata(content.pop(METADATA, {}))
        found = sorted((_tensor(name, entry) for name, entry in content.items()), key=lambda one: one[1:])
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is damaged: {error}") from error
    end = 0
    for tensor, begin, stop in found:
        if begin != end:
            raise _damaged(file, f"the bytes of {tensor.name!r} do not begin where those before it end")
        end = stop
    if 8 + length + end != size:
        raise _damaged(file, f"it has {size} bytes instead of {8 + length + end}")
    return [Place(tensor, file, 8 + length + begin) for tensor, begin, _ in found], metadata


def write_header(tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header of a new file, and where in the file the bytes of each tensor begin."""
    content: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    begins, end = {}, 0
    for tensor in sorted(tensors, key=lambda one: -BITS[one.dtype]):
        begins[tensor.name] = end
        end += tensor.bytes
        offsets = [begins[tensor.name], end]
        content[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + begin for name, begin in begins.items()}


def _tensor(name: str, entry: Any) -> tuple[Tensor, int, int]:
    """A tensor, where its bytes begin, and where they end."""
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        begin, end = offsets
        whole = isinstance(shape, list) and len(shape) <= MOST_AXES
        whole = whole and all(type(number) is int and 0 <= number < LARGEST for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or dtype not in BITS:
        raise ValueError(f"{name!r} has no known dtype, no shape or no place")
    if prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise ValueError(f"{name!r} is {dtype} of shape {shape} and has {end - begin} bytes")
    return Tensor(name, dtype, tuple(shape)), begin, end


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{METADATA} is no text by name")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _damaged(file: Path, what: str) -> ArtifactError:
    return ArtifactError(what, where=str(file), mend=AGAIN)
