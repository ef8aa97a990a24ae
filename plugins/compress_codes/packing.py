"""Codes of a few bits, side by side in bytes.

    eight codes of b bits take b bytes;  code k of a block fills the bits  k b ... k b + b - 1,  lowest first

so a code never leaves its block, and one of 1, 2 or 4 bits never its byte. The last block is filled with zeros.

Ranges: b from 1 to 8, codes in [0, 2^b). Cost: one pass; b * ceil(n / 8) bytes for n codes. Unpacking is made of
arithmetic alone, which every exporter can write and every runtime can run; shifts of bytes are not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8
"""Codes that take as many bytes as each of them has bits."""


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that so many codes take."""
    return bits * -(-count // BLOCK)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,) uint8 as bytes (b * ceil(n / 8),) uint8."""
    blocks = F.pad(codes, (0, -len(codes) % BLOCK)).reshape(-1, BLOCK)
    stream = (blocks.unsqueeze(2) >> _bytes(range(bits), codes)) & 1  # (blocks, 8, b), lowest bit first
    return (stream.reshape(-1, BLOCK) * _bytes((1 << place for place in range(BLOCK)), codes)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes (count,) of packed bytes, as float32.

    With u the two bytes in which a code begins, as one number, and s the place of its first bit, the code is
    floor(u / 2^s) mod 2^b, and floating-point numbers hold all of these exactly. The bytes become floats by the
    operation that is written as DequantizeLinear: exporters leave it and all behind it as they are, where they would
    compute a cast in advance and store its result.
    """
    real: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(packed, 1.0, 0, 0, 255, torch.uint8)
    if bits == BLOCK:
        return real[:count]
    if BLOCK % bits == 0:
        starts = list(range(0, BLOCK, bits))
        pairs = real.unsqueeze(1)
    else:
        starts = [place * bits for place in range(BLOCK)]
        blocks = real.reshape(-1, bits)
        first = [start // BLOCK for start in starts]
        then = [min(place + 1, bits - 1) for place in first]
        pairs = blocks[:, first] + blocks[:, then] * (1 << BLOCK)
    shares = torch.tensor([2.0 ** -(start % BLOCK) for start in starts], device=packed.device)
    moved = torch.floor(pairs * shares)
    codes = moved - torch.floor(moved * 2.0**-bits) * (1 << bits)
    return codes.flatten()[:count]


def _bytes(values: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=torch.uint8, device=like.device)
