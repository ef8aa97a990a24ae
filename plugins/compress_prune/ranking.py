"""The k smallest of many numbers, without a copy of them: exact, in chunks, equal ones told apart by position.

    find c, t:   #{x < c} + t = k,   0 < t <= #{x = c};        chosen: all x < c, and the first t of the x = c

float32 numbers, read as integers with the magnitude bits of negative ones turned, are in the order of the numbers.
So c is found digit by digit, two of 16 bits: count how many numbers have each upper digit, take the digit in which
the k-th lies, and count the lower digits of the numbers that have it. NaN counts as largest.

Source: radix selection; Knuth 1998, The art of computer programming 3, sec. 5.2.5. Cost: three passes over the
numbers (two counts, one mask); memory: one chunk of integers and 2^16 counts, whatever the size of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 20
"""How many numbers are looked at together."""
DIGITS = 1 << 16

Numbers = Sequence[Callable[[], Tensor]]
"""Tensors, made anew whenever they are wanted."""


@dataclass(frozen=True)
class Cutoff:
    """What the chosen numbers lie below."""

    value: float
    """The largest chosen number."""
    ties: int
    """How many of those that are equal to it are chosen."""


def cutoff(numbers: Numbers, count: int) -> Cutoff:
    """Where the `count` smallest of all numbers end, 0 < count <= how many there are."""
    upper, before = _digit((keys >> 16 for keys in _keys(numbers)), count)
    lower, within = _digit(((keys & 0xFFFF)[keys >> 16 == upper] for keys in _keys(numbers)), count - before)
    key = torch.tensor((upper << 16) + lower - (1 << 31), dtype=torch.int32)
    return Cutoff(float(_turned(key).view(torch.float32)), count - before - within)


def smallest(numbers: Numbers, count: int) -> Iterator[Tensor]:
    """Masks, True at the `count` smallest of all numbers, one after the other in the tensors' shapes."""
    if count <= 0:
        yield from (torch.zeros_like(make(), dtype=torch.bool) for make in numbers)
        return
    found = cutoff(numbers, count)
    ties = found.ties
    for make in numbers:
        values = make().float()
        chosen = values < found.value
        if ties:
            equal = (values == found.value).reshape(-1).nonzero().reshape(-1)[:ties]
            chosen.view(-1)[equal] = True
            ties -= len(equal)
        yield chosen


def _keys(numbers: Numbers) -> Iterator[Tensor]:
    """The numbers as integers from 0 to 2^32 in the same order, chunk by chunk."""
    for make in numbers:
        for chunk in make().detach().reshape(-1).split(CHUNK):
            yield _turned((chunk.float() + 0.0).view(torch.int32)).long() + (1 << 31)


def _turned(bits: Tensor) -> Tensor:
    """The bits of float32 numbers as integers in the same order, and back."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _digit(digits: Iterator[Tensor], count: int) -> tuple[int, int]:
    """The digit that the `count`-th smallest has, and how many have a smaller one."""
    counts: Tensor | None = None
    for chunk in digits:
        found = torch.bincount(chunk, minlength=DIGITS)
        counts = found if counts is None else counts.add_(found)
    assert counts is not None
    total = counts.cumsum(0)
    digit = int(torch.searchsorted(total, count))
    return digit, int(total[digit] - counts[digit])
