"""The 8-bit integers of convolutions: each by how large its neighbours in the kernel, the row and the column are.

    m(o, i) = (S(o, i) + 2.5 R(o) C(i) / (k T)) / (k + 2.5)       the size that is expected at place k of kernel (o, i)

S sums |w| over the places of the kernel before k, R, C and T sum S over a row, a column and everything. The sizes fall
into classes, each with a distribution of its own that is learned over all layers, from a geometric one on.

Source: context models of lossless image coding, as in JPEG-LS (Weinberger et al. 2000), for variances.
Range: int8, two or more places, up to 2**19 kernels. Cost: 80 to 150 ns a value.
"""

from __future__ import annotations

from math import prod

import numpy as np

from compress_pack.sequences import INCREMENT, geometric
from compress_pack.streams import Coder, DamagedError, Ints, Words

EDGES = np.array([1, 2, 4, 6, 8, 11, 16, 23, 32, 45, 64]) * 16
"""Of the classes of sizes, in sixteenths."""
SCALES = (0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
"""The geometric distribution with which each class begins."""
MOST = 1 << 19
"""Kernels of a tensor."""
_FIRST_SIZE = 20 * 16
_BLOCK = 4096
_CROWD = 1 << 22
_KIND = "kernels"


def has_kernels(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be coded in this way."""
    return dtype == "I8" and len(shape) > 2 and 0 < shape[0] * shape[1] <= MOST and prod(shape[2:]) > 1


def code_kernels(coder: Coder, dtype: str, shape: tuple[int, ...], values: Words | None) -> Words:
    """Code the weight of a convolution, (out, in, places...) in signed bytes; flat."""
    if not has_kernels(dtype, shape):
        raise DamagedError("it has kernels where there can be none")
    outputs, inputs, places = shape[0], shape[1], prod(shape[2:])
    given = None if values is None else (values ^ np.uint8(128)).reshape(outputs * inputs, places)
    found = np.empty((outputs * inputs, places), np.uint8)
    weights = coder.memory[_KIND][0].copy() if _KIND in coder.memory else _first_weights()
    sums = np.zeros((outputs, inputs), np.int64)
    for place in range(places):
        classes = np.searchsorted(EDGES, _sizes(sums, place).ravel(), "right").astype(np.uint8)
        for at in range(0, len(found), _BLOCK):
            part = slice(at, at + _BLOCK)
            _code_block(
                coder, weights, classes[part], None if given is None else given[part, place], found[part, place]
            )
        sums += np.abs(found[:, place].astype(np.int16) - 128).reshape(outputs, inputs)
    coder.remember(_KIND, weights, 0)
    return found.ravel() ^ np.uint8(128)


def _first_weights() -> Ints:
    return np.stack([geometric(scale, 256, 128) for scale in SCALES])


def _sizes(sums: Ints, place: int) -> Ints:
    """The size that is expected of each kernel's next value, in sixteenths; (out, in)."""
    if place == 0:
        return np.full(sums.shape, _FIRST_SIZE)
    rows, columns, total = sums.sum(1), sums.sum(0), max(1, int(sums.sum()))
    found: Ints = rows[:, None] * columns
    found *= 80
    found //= place * total
    found += 32 * sums
    found //= 2 * place + 5
    return found


def _code_block(coder: Coder, weights: Ints, classes: Words, given: Words | None, found: Words) -> None:
    """Code values class by class, and learn from them, in place."""
    for number in np.unique(classes).tolist():
        chosen = np.flatnonzero(classes == number)
        symbols = coder.symbols(weights[number], len(chosen), None if given is None else given[chosen])
        found[chosen] = symbols
        weights[number] += INCREMENT * np.bincount(symbols, minlength=256)
        if weights[number].sum() > _CROWD:
            weights[number] = (weights[number] + 1) >> 1
