"""Floating-point numbers as they lie in a file, and float32.

bfloat16 is the upper half of a float32. It is rounded to the nearest, halves to the even one: add half of the last
place that stays, one less where that place is even, and cut off. Cost: one pass; float16 is converted by numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The formats that are converted, and the numpy type in which their bytes are held."""
LARGEST = {"F32": 3.4028235e38, "F16": 65504.0, "BF16": 3.3895314e38}
"""The largest number of each format."""

Reals = NDArray[np.float32]
Raw = NDArray[np.uint8]


def to_float32(raw: Raw, dtype: str) -> Reals:
    """The numbers of a format as float32; those of F64 are rounded, and infinite where they are too large."""
    held = raw.view(FLOATS[dtype])
    if dtype == "F32":
        return held
    if dtype == "BF16":
        wide = held.astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return held.astype(np.float32)


def from_float32(values: Reals, dtype: str) -> Raw:
    """The bytes of float32 numbers in another format; those that are too large become infinite."""
    if dtype == "BF16":
        return _bfloat16(values).view(np.uint8)
    with np.errstate(over="ignore"):
        return values.astype(FLOATS[dtype]).view(np.uint8)


def fits(values: Reals, dtype: str) -> bool:
    """Whether no finite number is too large for a format. Numbers that are not finite stay what they are."""
    finite = values[np.isfinite(values)] if not np.isfinite(values).all() else values
    return not finite.size or float(np.abs(finite).max()) <= LARGEST[dtype]


def _bfloat16(values: Reals) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
