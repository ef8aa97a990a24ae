"""Where a sparse matrix is not zero: bits whose probability is known from rows and columns.

    p(r, c) = d(r) * f(c),  f(c) = (n(c) + a m(c)) / (E + a)
    p'(r, c) = p(r, c) * (ones + 2) / (expected + 2)

d is the density of the row, sent as a class of half an octave. n counts the ones of the column in the rows so far, and
E is the sum of d over them, so f is the posterior mean of a Poisson rate under a Gamma prior of shape a, whose mean m
is one or follows the columns beside it. The second line mends what a context (the size of p, the two bits above) was
found to have more or less of than expected. Rows and columns without any entry are listed and left out. All of it is
arithmetic with integers, for a block of rows at a time.

Range: matrices of up to 32,768 rows and columns; others are folded. Cost: 60 to 100 ns an entry of the rows and
columns that are left, nothing for the others.
"""

from __future__ import annotations

from math import log2

import numpy as np
from numpy.typing import NDArray

from compress_pack.sequences import code_sequence
from compress_pack.streams import ONE, Coder, Ints, Price

Mask = NDArray[np.bool_]
Choice = tuple[int, int]
"""The number of the Gamma prior's shape, and whether its mean follows the neighbours."""

WIDEST = 1 << 15
FOLDED = 1 << 10
"""The columns of what has too many, or only one axis."""
SHAPES = (1, 2, 4, 8, 16, 32, 64, 1024)
"""The shapes of the Gamma prior, in halves."""
CLASSES = 33
LEAST = 4
"""The smallest probability of a one, and of a zero, in units of 2**-16."""
_DENSITIES = np.array([((ONE, 46341)[k % 2] >> k // 2) for k in range(CLASSES)], np.int64)
"""2**(-class/2) in units of 2**-16."""
_CONTEXTS = 4 * 32
_FIRST_SIZE = int(np.float32(LEAST).view(np.int32)) >> 22
_BLOCK = 512
"""Entries that are coded at once, at the end; the first rows come alone."""
_SEARCHED = 1 << 21
"""The entries of a matrix above which no choice is searched for."""


def view_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The matrix as which a tensor is seen; its last row may reach beyond the tensor."""
    count = int(np.prod(shape, dtype=np.int64))
    if len(shape) > 1 and count and max(shape[0], count // shape[0]) <= WIDEST:
        return shape[0], count // shape[0]
    return -(-count // FOLDED), FOLDED


def code_positions(coder: Coder, rows: int, columns: int, mask: Mask | None) -> Mask:
    """Code where a matrix is not zero; (rows, columns)."""
    row_lives = _code_flags(coder, rows, None if mask is None else np.any(mask, axis=1))
    column_lives = _code_flags(coder, columns, None if mask is None else np.any(mask, axis=0))
    inner = None if mask is None else mask[row_lives][:, column_lives]
    size = int(row_lives.sum()), int(column_lives.sum())
    found = np.zeros((rows, columns), np.bool_)
    if all(size):
        kept = _code_inner(coder, size, inner)
        if all(column_lives):
            found[row_lives] = kept
        else:
            found[np.ix_(row_lives, column_lives)] = kept
    return found


def _code_flags(coder: Coder, count: int, flags: Mask | None) -> Mask:
    return code_sequence(coder, "lives", 2, count, None if flags is None else flags.astype(np.uint8)).astype(np.bool_)


def _code_inner(coder: Coder, size: tuple[int, int], mask: Mask | None) -> Mask:
    classes = None if mask is None else np.array([_class_of(n, size[1]) for n in mask.sum(1).tolist()], np.uint8)
    density = _DENSITIES[code_sequence(coder, "density", CLASSES, size[0], classes)]
    shape, follows = (0, 0) if mask is None else _choice(density, mask)
    shape, follows = coder.number(len(SHAPES), shape), coder.number(2, follows)
    return _rows(coder, density, size[1], (shape, follows), mask)


def _class_of(ones: int, columns: int) -> int:
    return min(CLASSES - 1, round(2 * log2(columns / ones)))


def _choice(density: Ints, mask: Mask) -> Choice:
    """The cheapest choice near the usual one."""

    def price(choice: Choice) -> float:
        if choice not in known:
            coder = Price({})
            _rows(coder, density, mask.shape[1], choice, mask)
            known[choice] = coder.total
        return known[choice]

    known: dict[Choice, float] = {}
    best: Choice = (2, 0)
    if mask.size > _SEARCHED:
        return best
    while True:
        shape, follows = best
        near = [(shape, 1 - follows), (max(0, shape - 1), follows), (min(len(SHAPES) - 1, shape + 1), follows)]
        better = min([best, *near], key=price)
        if better == best:
            return best
        best = better


def _rows(coder: Coder, density: Ints, columns: int, choice: Choice, mask: Mask | None) -> Mask:
    """Code the rows of a matrix, block by block."""
    rows = len(density)
    found = np.zeros((rows, columns), np.bool_)
    column_ones = np.zeros(columns, np.int64)
    ones, expected = np.zeros(_CONTEXTS, np.int64), np.zeros(_CONTEXTS, np.int64)
    at, past = 0, 0
    while at < rows:
        end = min(rows, at + max(1, min(at // 4, _BLOCK // columns)))
        block = density[at:end]
        above = 2 * found[at - 1] + found[at - 2] if at > 1 else np.zeros(columns, np.int64)
        p = _bounded((block[:, None] * _factors(column_ones, past, *choice)) >> 12)
        context = (4 * _size_of(p) + above).ravel()
        mended = ((ones + 2) << 28) // (expected + 2 * ONE)
        p = p.ravel()
        bits = coder.bits(_bounded((p * mended[context]) >> 12), None if mask is None else mask[at:end].ravel())
        found[at:end] = bits.reshape(end - at, columns)
        ones += np.bincount(context[bits != 0], minlength=_CONTEXTS)
        expected += np.bincount(context, weights=p, minlength=_CONTEXTS).astype(np.int64)
        column_ones += found[at:end].sum(0)
        past += int(block.sum())
        at = end
    return found


def _bounded(p: Ints) -> Ints:
    """Probabilities that leave both outcomes possible; in place."""
    np.maximum(p, LEAST, out=p)
    np.minimum(p, ONE - LEAST, out=p)
    return p


def _size_of(p: Ints) -> Ints:
    """How large probabilities are, two classes for each octave, from 0 to 29: the first bits of their floats."""
    found: Ints = (p.astype(np.float32).view(np.int32) >> 22) - _FIRST_SIZE
    return found


def _factors(ones: Ints, past: int, shape: int, follows: int) -> Ints:
    """How much denser each column is than the matrix, in units of 2**-12."""
    strength = SHAPES[shape] * ONE // 2
    if not follows:
        return ((ones << 16) + strength << 12) // (past + strength)
    beside = np.zeros_like(ones)
    beside[1:] += ones[:-1]
    beside[:-1] += ones[1:]
    mean = ((beside << 16) + 2 * strength << 12) // (2 * (past + strength))
    return ((ones << 28) + strength * mean) // (past + strength)
