"""The magnitude below which the k smallest entries of many tensors lie: exact, and without a copy of them.

    theta = the k-th smallest of all |w|            c = k - #{ |w| < theta }
    gone  = { |w| < theta } and the first c entries, by their position, with |w| = theta

The bits of a floating-point magnitude, read as an integer, are in the order of the magnitudes (IEEE 754-2019, sec.
5.10: totalOrder). So theta is found digit by digit, the highest 16 bits first: one histogram of the digit over all
entries whose higher digits are already those of theta (a radix selection, Knuth, The Art of Computer Programming 3,
sec. 5.2.5). float16 and bfloat16 take one pass, float32 two, float64 four. NaN counts as larger than anything.

Memory: one block of 2^20 entries and a histogram of 2^16 counts, whatever the tensors' size. Cost: one read of all
entries for each pass, no sorting; no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 20
"""Entries that are looked at together."""
DIGIT = 16
"""Bits of one pass."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Cut:
    """Where the k smallest end."""

    threshold: Tensor
    """theta: a scalar in the type in which all tensors are compared."""
    ties: int
    """How many of the entries whose magnitude is theta are among the k, the first ones by position."""


def kth_magnitude(tensors: Sequence[Tensor], k: int, gone: Sequence[Tensor] | None = None) -> Cut:
    """The k-th smallest magnitude of all entries together.

    Args:
        tensors: real numbers, of any shapes and types; compared in the widest of these types.
        k: from 1 to the number of entries that count.
        gone: boolean masks in the same shapes; entries that are True do not count.

    Raises:
        ValueError: there are fewer than k such entries, or k is below 1.
    """
    kind = _common_type(tensors)
    prefix, left = 0, k
    width = 8 * kind.itemsize
    for shift in range(width - DIGIT, -1, -DIGIT):
        counts = _histogram(tensors, gone, kind, shift, prefix)
        below = counts.cumsum(0)
        if not 1 <= left <= int(below[-1]):
            raise ValueError(f"there is no {k}-th of {int(below[-1])} entries")
        digit = int(torch.searchsorted(below, left))
        left -= int(below[digit - 1]) if digit else 0
        prefix = prefix << DIGIT | digit
    threshold = torch.tensor([prefix], dtype=_INTEGERS[kind.itemsize]).view(kind)[0]
    return Cut(threshold, left)


def at_most(tensors: Sequence[Tensor], cut: Cut, gone: Sequence[Tensor] | None = None) -> Iterator[Tensor]:
    """Masks, tensor by tensor: True where an entry is among the k smallest of `cut`, or in `gone`."""
    ties = cut.ties
    for index, tensor in enumerate(tensors):
        mask = torch.empty(tensor.shape, dtype=torch.bool, device=tensor.device)
        row = mask.view(-1)
        start = 0
        for magnitudes, counted in _blocks(tensor, None if gone is None else gone[index], cut.threshold.dtype):
            found = row[start : start + len(magnitudes)]
            torch.lt(magnitudes, cut.threshold.to(magnitudes.device), out=found)
            equal = magnitudes == cut.threshold.to(magnitudes.device)
            if counted is not None:
                equal &= counted
                found |= ~counted
            if ties and (count := int(equal.sum())):
                found |= equal if count <= ties else equal & (equal.cumsum(0) <= ties)
                ties -= min(ties, count)
            start += len(magnitudes)
        yield mask


def _histogram(
    tensors: Sequence[Tensor], gone: Sequence[Tensor] | None, kind: torch.dtype, shift: int, prefix: int
) -> Tensor:
    """How many entries with these higher digits have each value of the digit at `shift`, (2^16,) int64."""
    total = torch.zeros(1 << DIGIT, dtype=torch.int64)
    top = shift == 8 * kind.itemsize - DIGIT
    for index, tensor in enumerate(tensors):
        for magnitudes, counted in _blocks(tensor, None if gone is None else gone[index], kind):
            bits = (magnitudes if counted is None else magnitudes[counted]).view(_INTEGERS[kind.itemsize])
            alike = bits if top else bits[bits >> (shift + DIGIT) == prefix]
            total += torch.bincount(alike >> shift & ((1 << DIGIT) - 1), minlength=1 << DIGIT).cpu()
    return total


def _blocks(tensor: Tensor, gone: Tensor | None, kind: torch.dtype) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Blocks of magnitudes, one axis, and which of them count (None: all do)."""
    flat = tensor.detach().reshape(-1)
    mask = None if gone is None else gone.reshape(-1)
    for start in range(0, len(flat), BLOCK):
        part = slice(start, start + BLOCK)
        yield flat[part].to(kind).abs(), None if mask is None else ~mask[part]


def _common_type(tensors: Sequence[Tensor]) -> torch.dtype:
    kind = tensors[0].dtype
    for tensor in tensors[1:]:
        kind = torch.promote_types(kind, tensor.dtype)
    return kind
