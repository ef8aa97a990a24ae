"""Integers of few bits, several to a byte.

    codes of 3 and 4 bits lie two to a byte, those of 2 bits four, the first in the lowest bits, as two's complement
    of the field's width;  a row of n codes takes ceil(n / fields) bytes, filled with zeros

so the rows of a weight, its output channels, can be read one by one, and a byte of zeros is a row of zeros.

Ranges: 2 to 4 bits, integers in [-2^(b-1), 2^(b-1) - 1]; wider ones stay int8. Cost: one pass.

Unpacking is floating-point arithmetic on bytes, exact for all of them: of shifts, exporters write types that ONNX
forbids. Measured with onnxruntime 1.32: the file holds the bytes, and the runtime unpacks them to int8 once, when it
opens the file; the kernels are those of a file with int8 weights, and the file is half as large.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 4
"""The most bits of a code that shares its byte."""
BYTE = 8


def fields_of(bits: int) -> int:
    """How many codes lie in a byte."""
    return 4 if bits <= 2 else 2


def packed_columns(columns: int, bits: int) -> int:
    """The bytes of a row of codes."""
    return -(-columns // fields_of(bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers (rows, columns), of any type, as bytes (rows, `packed_columns`) uint8."""
    fields = fields_of(bits)
    width = BYTE // fields
    padded = F.pad(codes.to(torch.int64), (0, -codes.shape[1] % fields)) % (1 << width)
    places = torch.tensor([1 << width * field for field in range(fields)], device=codes.device)
    return (padded.reshape(len(codes), -1, fields) * places).sum(2).to(torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int, factor: int = 1) -> Tensor:
    """The integers (rows, columns) int8 of bytes (rows, `packed_columns`), times a factor."""
    fields = fields_of(bits)
    size = 1 << BYTE // fields
    left = packed.float()
    found = []
    for _ in range(fields):
        above = torch.floor(left / size)
        code = left - above * size
        found.append(code - (code >= size // 2) * size)
        left = above
    return (torch.stack(found, 2).flatten(1)[:, :columns] * factor).to(torch.int8)
