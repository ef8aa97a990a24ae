"""Codes of a few bits, side by side in bytes.

    eight codes of b bits take b bytes;  code k of a block fills the bits  k b ... k b + b - 1,  lowest first

so a code never leaves its block, and one of 1, 2 or 4 bits never its byte. The last block is filled with zeros.

Ranges: b from 1 to 8, codes in [0, 2^b). Cost: one pass; b * ceil(n / 8) bytes for n codes. Unpacking is made of
operations on bytes that exporters can write, and works on any device.
"""

from __future__ import annotations

import torch
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
    ones = torch.arange(bits, dtype=torch.uint8, device=codes.device)
    stream = (blocks.unsqueeze(2) >> ones) & 1  # (blocks, 8, b), lowest bit first
    weights = torch.tensor([1 << place for place in range(BLOCK)], dtype=torch.uint8, device=codes.device)
    return (stream.reshape(-1, BLOCK) * weights).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes (count,) uint8 of packed bytes."""
    if bits == BLOCK:
        return packed[:count]
    if BLOCK % bits == 0:
        shifts = torch.arange(0, BLOCK, bits, dtype=torch.uint8, device=packed.device)
        found = packed.unsqueeze(1) >> shifts
    else:
        found = _across_bytes(packed, bits)
    return (found & (1 << bits) - 1).flatten()[:count]


def _across_bytes(packed: Tensor, bits: int) -> Tensor:
    """The codes of widths that do not divide a byte, (blocks, 8), with what lies above them."""
    starts = [place * bits for place in range(BLOCK)]
    blocks = packed.reshape(-1, bits)
    low = torch.stack([blocks[:, start // BLOCK] >> start % BLOCK for start in starts], 1)
    parts = [
        blocks[:, start // BLOCK + 1] << BLOCK - start % BLOCK
        if start % BLOCK + bits > BLOCK
        else torch.zeros_like(blocks[:, 0])
        for start in starts
    ]
    return low | torch.stack(parts, 1)
