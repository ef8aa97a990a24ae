"""Sequences of symbols whose distribution is learned while they come.

    weight[s] = prior[s] + 32 * (how often s came)        KT's estimate for a flat prior of 16

The prior is one of a small number, whichever is cheapest: flat, a two-sided geometric or a Gaussian around the most
frequent symbol, or what the last sequence of the same kind has left. Weights are updated after every block; blocks grow
by a half, so that a short sequence learns early and a long one is decoded quickly.

Source: Krichevsky & Trofimov 1981, "The performance of universal encoding", for the flat prior.
Range: alphabets of up to 4096 symbols. Cost: one pass, 20 to 50 ns a symbol.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from compress_pack.streams import Coder, DamagedError, Ints, Price, Words

INCREMENT = 32
LARGEST = 4096
"""Symbols of an alphabet."""
FIRST_BLOCK, LAST_BLOCK = 16, 4096
CROWDS = (1 << 22, 1 << 15)
"""The sums of the weights at which they are halved: the second forgets what lies 1000 symbols back."""

FLAT = (16, 4, 1)
"""The weights of the flat priors."""
MASSES = (16, 96)
"""How many symbols a shaped prior counts for."""
GEOMETRIC = (
    *(254926, 385750, 517020, 635993, 736298, 816632, 878672, 925365),
    *(959872, 985046, 1003244, 1016315, 1025660, 1032319, 1037055),
)
"""exp(-1 / s) in units of 2**-20, for s from 0.7 to 90 in steps of sqrt(2)."""
GAUSSIAN = (
    *(385750, 635993, 816632, 925365, 985046, 1016315, 1032319, 1040416),
    *(1044488, 1046530, 1047552, 1048064, 1048320, 1048448, 1048512),
)
"""exp(-1 / (2 s**2)) in the same units, for the same s."""
REMEMBERED = len(FLAT) + (len(GEOMETRIC) + len(GAUSSIAN)) * len(MASSES)
"""The number of the prior that the last sequence has left."""
_UNIT = 1 << 20
_COARSE = range(len(FLAT), REMEMBERED, 3 * len(MASSES))
"""Every third of the shaped priors: those that are tried first."""
_SAMPLE = 1 << 13
"""Symbols on which the priors are compared."""


def code_sequence(coder: Coder, kind: str, limit: int, count: int, values: Words | None) -> Words:
    """Code `count` symbols below `limit`, at most 4096; (count,), the narrowest unsigned type that holds them.

    Args:
        coder: the direction.
        kind: what the symbols are; sequences of one kind learn from one another.
        limit: known to both sides.
        count: known to both sides.
        values: the symbols, or None to read them.
    """
    low = high = middle = 0
    if values is not None and count:
        low, high = int(values.min()), int(values.max())
        middle = int(np.bincount(values - low).argmax())
        values = (values - low).astype(np.int64)
    low = coder.number(limit, low)
    size = coder.number(limit - low, high - low) + 1
    found: Words = np.empty(count, np.uint8 if limit <= 256 else np.uint16)
    if size == 1:
        found[:] = low
        return found
    middle = coder.number(size, middle)
    number, crowd = _choice(coder, kind, size, middle, values) if values is not None else (0, 0)
    number, crowd = coder.number(REMEMBERED + 1, number), coder.number(len(CROWDS), crowd)
    prior = _prior(coder, kind, number, size, middle)
    weights = _adaptive(coder, prior, CROWDS[crowd], values, found)
    found += found.dtype.type(low)
    coder.remember(kind, weights - prior, middle)
    return found


def _adaptive(coder: Coder, prior: Ints, crowd: int, values: Words | None, found: Words) -> Ints:
    """Code the symbols into `found`, and return the last weights."""
    weights = prior.copy()
    at, block = 0, FIRST_BLOCK
    while at < len(found):
        end = min(at + block, len(found))
        symbols = coder.symbols(weights, end - at, None if values is None else values[at:end])
        found[at:end] = symbols
        weights += INCREMENT * np.bincount(symbols, minlength=len(weights))
        if weights.sum() > crowd:
            weights = (weights + 1) >> 1
        at, block = end, min(block + block // 2, LAST_BLOCK)
    return weights


def _choice(coder: Coder, kind: str, size: int, middle: int, values: Words) -> tuple[int, int]:
    """The numbers of the cheapest prior and of the cheapest memory."""
    sample = values[:_SAMPLE]
    known: dict[int, float] = {}

    def cheapest(numbers: Iterable[int]) -> int:
        for number in numbers:
            if number not in known:
                known[number] = _price(coder, _prior(coder, kind, number, size, middle), 0, sample)
        return min(known, key=known.__getitem__)

    best = cheapest((*range(len(FLAT)), *([REMEMBERED] if kind in coder.memory else []), *_COARSE))
    if len(FLAT) <= best < REMEMBERED:
        place = (best - len(FLAT)) // len(MASSES)
        near = [p for p in range(place - 2, place + 3) if 0 <= p < len(GEOMETRIC) + len(GAUSSIAN)]
        best = cheapest(len(FLAT) + p * len(MASSES) + mass for p in near for mass in range(len(MASSES)))
    prior = _prior(coder, kind, best, size, middle)
    lasting = len(values) * INCREMENT < CROWDS[1] or _price(coder, prior, 0, values) <= _price(coder, prior, 1, values)
    return best, 0 if lasting else 1


def _price(coder: Coder, prior: Ints, crowd: int, values: Words) -> float:
    price = Price({})
    _adaptive(price, prior, CROWDS[crowd], values, np.empty(len(values), np.uint16))
    return price.total


def _prior(coder: Coder, kind: str, number: int, size: int, middle: int) -> Ints:
    if number != REMEMBERED:
        return _shape(number, size, middle)
    if kind not in coder.memory:
        raise DamagedError("it builds on a sequence that is not there")
    weights, centre = coder.memory[kind]
    return 1 + _aligned(weights, centre, size, middle) * (MASSES[1] * INCREMENT) // max(1, int(weights.sum()))


def _aligned(weights: Ints, centre: int, size: int, middle: int) -> Ints:
    """The weights with the middle moved from `centre` to `middle`, for another size of the alphabet."""
    found = np.zeros(size, np.int64)
    shift = middle - centre
    first, last = max(0, shift), min(size, len(weights) + shift)
    if first < last:
        found[first:last] = np.maximum(weights[first - shift : last - shift], 0)
    return found


def geometric(scale: int, size: int, middle: int) -> Ints:
    """The weights of the two-sided geometric prior with that ratio of `GEOMETRIC`."""
    return _shape(len(FLAT) + scale * len(MASSES) + 1, size, middle)


@lru_cache(maxsize=512)
def _shape(number: int, size: int, middle: int) -> Ints:
    """The weights of a flat, geometric or Gaussian prior, all at least one, in integer arithmetic."""
    if number < len(FLAT):
        return np.full(size, FLAT[number], np.int64)
    place, mass = divmod(number - len(FLAT), len(MASSES))
    is_geometric = place < len(GEOMETRIC)
    ratio = GEOMETRIC[place] if is_geometric else GAUSSIAN[place - len(GEOMETRIC)]
    growth = _UNIT if is_geometric else ratio * ratio // _UNIT
    slope = [_UNIT]
    while len(slope) < size and slope[-1]:
        slope.append(slope[-1] * ratio // _UNIT)
        ratio = ratio * growth // _UNIT
    heights = np.zeros(size, np.int64)
    heights[: len(slope)] = slope
    weights = heights[np.abs(np.arange(size) - middle)]
    found: Ints = 1 + weights * (MASSES[mass] * INCREMENT) // int(weights.sum())
    return found
