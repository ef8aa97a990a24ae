"""Where the k smallest of many numbers end: exact, and without a copy of them.

    theta = the k-th smallest of all x              c = k - #{ x < theta }
    gone  = { x < theta } and the first c entries, by their position, with x = theta

The bits of a floating-point number, read as an integer and with those behind the sign turned where it is negative,
are in the order of the numbers (IEEE 754-2019, sec. 5.10: totalOrder). So theta is found digit by digit, the highest
16 bits first: one histogram of the digit over all entries whose higher digits are already those of theta (a radix
selection, Knuth, The Art of Computer Programming 3, sec. 5.2.5). float16 and bfloat16 take one pass, float32 two,
float64 four. NaN counts as larger than anything.

Memory: what the numbers yield at a time, such as one block of 2^17, and a histogram of 2^16 counts, however many there
are. Cost: one read of all entries for each pass, no sorting; no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 17
"""Entries that are looked at together: what fits into a cache, and is not fetched from the system each time."""
DIGIT = 16
"""Bits of one pass."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Numbers = Callable[[], Iterator[Tensor]]
"""Yields the numbers of one tensor anew at each call, in blocks of one axis."""


@dataclass(frozen=True)
class Cut:
    """Where the k smallest end."""

    threshold: Tensor
    """theta: a scalar in the type in which all numbers are compared."""
    ties: int
    """How many of the entries that are equal to theta are among the k, the first ones by position."""


def magnitudes(tensor: Tensor, gone: Tensor) -> Numbers:
    """The magnitudes of a tensor's entries, -1 for those in a mask."""
    return lambda: (_magnitudes(block, mask) for block, mask in zip(_blocks(tensor), _blocks(gone), strict=True))


def values(make: Callable[[], Tensor]) -> Numbers:
    """The entries of a tensor that is made whenever they are wanted."""
    return lambda: _blocks(make())


def kth_smallest(numbers: Sequence[Numbers], k: int, kind: torch.dtype = torch.float32) -> Cut:
    """The k-th smallest of all numbers together.

    Args:
        numbers: real numbers, tensor by tensor.
        k: from 1 to how many there are.
        kind: the type in which they are compared.

    Raises:
        ValueError: there are fewer than k, or k is below 1.
    """
    prefix, left = 0, k
    width = 8 * kind.itemsize
    for shift in range(width - DIGIT, -1, -DIGIT):
        below = _histogram(numbers, kind, shift, prefix).cumsum(0)
        if not 1 <= left <= int(below[-1]):
            raise ValueError(f"there is no {k}-th of {int(below[-1])} entries")
        digit = int(torch.searchsorted(below, left))
        left -= int(below[digit - 1]) if digit else 0
        prefix = prefix << DIGIT | digit
    bits = torch.tensor([prefix - (1 << width - 1)], dtype=torch.int64).to(_INTEGERS[kind.itemsize])
    return Cut(_turned(bits).view(kind)[0], left)


def at_most(numbers: Sequence[Numbers], cut: Cut) -> Iterator[Tensor]:
    """Masks of one axis, tensor by tensor: True where an entry is among the k smallest of `cut`."""
    ties = cut.ties
    for blocks in numbers:
        found = []
        for block in blocks():
            threshold = cut.threshold.to(block.device)
            numbered = block.to(threshold.dtype)
            mask, equal = numbered < threshold, numbered == threshold
            if ties and (count := int(torch.count_nonzero(equal))):
                mask |= equal if count <= ties else equal & (equal.cumsum(0) <= ties)
                ties -= min(ties, count)
            found.append(mask)
        yield found[0] if len(found) == 1 else torch.cat(found)


def smallest(numbers: Sequence[Numbers], k: int, kind: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Masks of one axis, tensor by tensor: True at the k smallest of all numbers together; k may be 0.

    Raises:
        ValueError: there are fewer than k.
    """
    if k > 0:
        yield from at_most(numbers, kth_smallest(numbers, k, kind))
    else:
        for blocks in numbers:
            yield torch.cat([torch.zeros_like(block, dtype=torch.bool) for block in blocks()])


def _histogram(numbers: Sequence[Numbers], kind: torch.dtype, shift: int, prefix: int) -> Tensor:
    """How many entries with these higher digits have each value of the digit at `shift`, (2^16,) int64."""
    total = torch.zeros(1 << DIGIT, dtype=torch.int64)
    known = 8 * kind.itemsize - DIGIT - shift
    for blocks in numbers:
        for block in blocks():
            keys = _keys(block.to(kind))
            if known:
                keys = keys[(keys >> shift + DIGIT) & ((1 << known) - 1) == prefix]
            total += torch.bincount(keys >> shift & ((1 << DIGIT) - 1), minlength=1 << DIGIT).cpu()
    return total


def _keys(block: Tensor) -> Tensor:
    """Integers whose bits, read without a sign, are in the order of the numbers."""
    bits = _turned((block + 0.0).view(_INTEGERS[block.dtype.itemsize]))
    return bits.int() + (1 << 15) if block.dtype.itemsize == 2 else bits ^ torch.iinfo(bits.dtype).min


def _turned(bits: Tensor) -> Tensor:
    """The bits behind the sign turned where it is negative; twice is nothing."""
    return bits ^ (bits >> 8 * bits.dtype.itemsize - 1 & torch.iinfo(bits.dtype).max)


def _magnitudes(block: Tensor, gone: Tensor) -> Tensor:
    """|x|, and -1 where it is gone: |x| - |x| * gone - gone, for finite x exact, in vector instructions."""
    found, lost = block.abs(), gone.view(torch.int8)
    return found.addcmul_(found, lost, value=-1).sub_(lost)


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), BLOCK):
        yield flat[start : start + BLOCK]
