"""Where a sparse matrix is not zero: bits whose probability is known from rows, columns and neighbours.

    p(r, c) = d(r) * f(c),  f(c) = (n(c) + a m(c)) / (E + a)
    p'(r, c) = p(r, c) * (ones + 2) / (expected + 2)

d is the density of the row, sent as a class of half an octave. n counts the ones of the column in the rows so far, and
E is the sum of d over them, so f is the posterior mean of a Poisson rate under a Gamma prior of shape a, whose mean m
is one or follows the columns beside it. The second line mends what a context was found to have more or less of than
expected: the size of p, and the bits in the row above and around the row that lies `lag` above. The rows of a picture
are such neighbours: the weights of a pixel go where those of the pixels beside it and above it go. Columns without any
entry are listed and left out, rows without any have a class of their own. All of it is arithmetic with integers.

Range: matrices of up to 32,768 rows and columns; others are folded. Cost: 60 to 100 ns an entry of the rows and
columns that are left and 60 microseconds a row, nothing for the others.
"""

from __future__ import annotations

from math import log2

import numpy as np
from numpy.typing import NDArray

from compress_pack.sequences import code_sequence
from compress_pack.streams import ONE, Coder, Ints, Price, Words

Mask = NDArray[np.bool_]
Choice = tuple[int, int, int]
"""The number of the Gamma prior's shape, whether its mean follows the neighbours, and the lag."""

WIDEST = 1 << 15
FOLDED = 1 << 10
"""The columns of what has too many, or only one axis."""
SHAPES = (1, 2, 4, 8, 16, 32, 64, 1024)
"""The shapes of the Gamma prior, in halves."""
CLASSES = 33
LAGS = 256
LEAST = 4
"""The smallest probability of a one, and of a zero, in units of 2**-16."""
_DENSITIES = np.array([((ONE, 46341)[k % 2] >> k // 2) for k in range(CLASSES)], np.int64)
"""2**(-class/2) in units of 2**-16."""
_AROUND = 8
_CONTEXTS = _AROUND * 16
_FIRST_SIZE = int(np.float32(LEAST).view(np.int32)) >> 23
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
    flags = None if mask is None else np.any(mask, axis=0).astype(np.uint8)
    lives = code_sequence(coder, "lives", 2, columns, flags).astype(np.bool_)
    found = np.zeros((rows, columns), np.bool_)
    if rows and lives.any():
        inner = None if mask is None else mask[:, lives]
        found[:, lives] = _code_inner(coder, rows, int(lives.sum()), inner)
    return found


def best_lag(mask: Mask) -> int:
    """How far above the rows lie that are most like a row; 1 if those are the rows just above."""
    ones = max(1, int(mask.sum()))
    alike = [int(np.count_nonzero(mask[lag:] & mask[:-lag])) for lag in range(2, min(LAGS, len(mask) // 4))]
    if mask.size > _SEARCHED or not alike or max(alike) < 1.2 * ones * ones / mask.size:
        return 1
    return 2 + alike.index(max(alike))


def _code_inner(coder: Coder, rows: int, columns: int, mask: Mask | None) -> Mask:
    classes = [] if mask is None else [_class_of(n, columns) for n in mask.sum(1).tolist()]
    empty = 1 + coder.number(CLASSES, max((k for k in classes if k < CLASSES), default=0))
    classes = [min(k, empty) for k in classes]
    shape, follows, lag = _choice(empty, classes, mask) if mask is not None and classes else (0, 0, 1)
    choice = coder.number(len(SHAPES), shape), coder.number(2, follows), 1 + coder.number(LAGS, lag - 1)
    return _code_rows(coder, Densities(empty, rows, choice[2], classes), columns, choice, mask)


def _class_of(ones: int, columns: int) -> int:
    return min(CLASSES - 1, round(2 * log2(columns / ones))) if ones else CLASSES


def _choice(empty: int, classes: list[int], mask: Mask) -> Choice:
    """The cheapest choice near the usual one."""

    def price(choice: Choice) -> float:
        if choice not in known:
            coder = Price({})
            _code_rows(coder, Densities(empty, len(mask), choice[2], classes), mask.shape[1], choice, mask)
            known[choice] = coder.total
        return known[choice]

    known: dict[Choice, float] = {}
    best: Choice = (2, 0, best_lag(mask))
    if mask.size > _SEARCHED:
        return best
    while True:
        shape, follows, lag = best
        near = [(shape, 1 - follows), (max(0, shape - 1), follows), (min(len(SHAPES) - 1, shape + 1), follows)]
        better = min([best, *((*entry, lag) for entry in near), (shape, follows, 1)], key=price)
        if better == best:
            return best
        best = better


class Densities:
    """The classes of the rows, each coded beside those of its neighbours: weight = histogram * histogram of changes."""

    def __init__(self, empty: int, rows: int, lag: int, known: list[int]) -> None:
        """`empty` is the class of rows without any entry; `known` are the classes, or nothing to read them."""
        self.empty, self.rows, self._lag, self._known = empty, rows, lag, known
        self.classes = np.full(lag + rows, empty, np.int64)
        self._often = np.full(empty + 1, 8, np.int64)
        distance = np.abs(np.arange(-empty, empty + 1))
        self._changes = 4 + (128 >> np.minimum(distance, 7))

    def code(self, coder: Coder, row: int) -> int:
        """The class of a row."""
        place = row + self._lag
        expected = int(self.classes[place - 1] + self.classes[row] + 1) >> 1
        weights = self._often * self._changes[self.empty - expected : 2 * self.empty + 1 - expected]
        found = int(coder.symbols(weights, 1, np.array([self._known[row]]) if self._known else None)[0])
        self.classes[place] = found
        self._often[found] += 32
        self._changes[found - expected + self.empty] += 32
        return found


def _code_rows(coder: Coder, densities: Densities, columns: int, choice: Choice, mask: Mask | None) -> Mask:
    """Code the rows of a matrix, block by block."""
    rows = densities.rows
    shape, follows, lag = choice
    found = np.zeros((rows + lag + 1, columns + 1), np.uint8)  # with nothing above, and nothing on the right
    column_ones = np.zeros(columns, np.int64)
    ones, expected = np.zeros(_CONTEXTS, np.int64), np.zeros(_CONTEXTS, np.int64)
    at, past = 0, 0
    while at < rows:
        end = min(rows, at + max(1, min(at // 4, _BLOCK // columns)))
        kept = np.array([densities.code(coder, row) for row in range(at, end)])
        block = _DENSITIES[kept[kept < densities.empty]]
        lives = at + np.flatnonzero(kept < densities.empty)
        at = end
        if not len(lives):
            continue
        p = _bounded((block[:, None] * _factors(column_ones, past, shape, follows)) >> 12)
        context = (_size_of(p) * _AROUND + _around(found, lives, lag)).ravel()
        mended = ((ones + 2) << 28) // (expected + 2 * ONE)
        p = p.ravel()
        bits = coder.bits(_bounded((p * mended[context]) >> 12), None if mask is None else mask[lives].ravel())
        found[lives + lag + 1, :columns] = bits.reshape(len(lives), columns)
        ones += np.bincount(context[bits != 0], minlength=_CONTEXTS)
        expected += np.bincount(context, weights=p, minlength=_CONTEXTS).astype(np.int64)
        column_ones += found[lives + lag + 1, :columns].sum(0, dtype=np.int64)
        past += int(block.sum())
    kept_rows: Mask = found[lag + 1 :, :columns] != 0
    return kept_rows


def _around(found: Words, lives: Ints, lag: int) -> Words:
    """Which of the entries above are ones, as a number below `_AROUND`; (rows, columns)."""
    above = found[lives + lag, :-1]
    if lag == 1:
        before: Words = above * 2 + found[lives, :-1]
        return before
    found_around: Words = above * 4 + found[lives + 1, :-1] * 2 + (found[lives, :-1] | found[lives + 2, :-1])
    return found_around


def _bounded(p: Ints) -> Ints:
    """Probabilities that leave both outcomes possible; in place."""
    np.maximum(p, LEAST, out=p)
    np.minimum(p, ONE - LEAST, out=p)
    return p


def _size_of(p: Ints) -> Ints:
    """How large probabilities are, one class for each octave, from 0 to 14: the exponents of their floats."""
    found: Ints = (p.astype(np.float32).view(np.int32) >> 23) - _FIRST_SIZE
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
