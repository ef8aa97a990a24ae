"""From the files of an artifact to a packed file: `compress_pack.decoding` says how one looks.

The same artifact gives the same bytes. Nothing is lost: the codes are exact, bit for bit, whatever the numbers are.
Cost: each tensor is priced in every way that fits it, 1 to 10 microseconds a weight.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from compress_pack.decoding import (
    KNOWN,
    LEAST_HEADER,
    LEAST_RESTORED,
    MAGIC,
    MOST_HEADER,
    MOST_RESTORED,
    VERSION,
    Stored,
)
from compress_pack.streams import Writer
from compress_pack.tensors import ITEM_SIZES, code_tensor


def pack(manifest: Mapping[str, Any], tensors: Sequence[Stored]) -> bytes:
    """The packed file of an artifact.

    Args:
        manifest: of the artifact; its list of files is left out, since they are made anew.
        tensors: in the order in which the artifact holds them.
    """
    writer = Writer()
    for tensor in tensors:
        code_tensor(writer, tensor.dtype, tensor.shape, tensor.words)
    raw, coded = writer.parts()
    content = {key: value for key, value in manifest.items() if key != "files"}
    header = _json([content, [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in tensors]])
    restored = sum(tensor.words.nbytes for tensor in tensors)
    return _file(restored, header, raw, coded)


def read_tensors(data: bytes) -> list[Stored]:
    """The tensors of a safetensors file in the order in which it holds them.

    Raises:
        KeyError: it has a number format that cannot be packed.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found: list[Stored] = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        size = ITEM_SIZES[entry["dtype"]]
        start, end = entry["data_offsets"]
        words = np.frombuffer(data, f"<u{size}", (end - start) // size, 8 + length + start).astype(f"u{size}")
        found.append(Stored(name, entry["dtype"], tuple(entry["shape"]), words))
    return found


def write_tensors(tensors: Iterable[Stored]) -> bytes:
    """A safetensors file, byte for byte as safetensors writes it."""
    header: dict[str, Any] = {}
    at = 0
    bodies: list[bytes] = []
    for tensor in tensors:
        body = tensor.words.astype(tensor.words.dtype.newbyteorder("<")).tobytes()
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(body)],
        }
        at += len(body)
        bodies.append(body)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *bodies])


def _json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def _file(restored: int, header: bytes, raw: bytes, coded: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, KNOWN)
    deflated = deflater.compress(header) + deflater.flush()
    least = 0
    if restored > LEAST_RESTORED:
        least = -(-restored // MOST_RESTORED)
    if len(header) > LEAST_HEADER:
        least = max(least, -(-len(header) // MOST_HEADER))
    raw += b"\0" * max(0, least - len(deflated) - len(raw) - len(coded))
    numbers = (restored, len(header), len(deflated), len(raw), len(coded))
    body = b"".join([MAGIC, bytes([VERSION]), *map(_number, numbers), deflated, raw, coded])
    return body + zlib.crc32(body).to_bytes(4, "little")


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
