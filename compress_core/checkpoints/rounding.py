"""Weights as 8-bit integers: symmetric, one scale per row or per group of a row.

    scale = max |w| / 127        q = round(w / scale) in [-127, 127]        w' = scale * q

The grid is that of the `quantize` technique, with w multiplied by 1 / scale as there, so the integers are the same.
The error is told as rms(w - w') / rms(w), about 0.9 % for the normally distributed rows of 4096 numbers.

Source: Jacob et al. 2018, Quantization and Training of Neural Networks, eq. 1, with zero point 0.
Cost: six passes over a piece of a few hundred kB, which stays in the cache of the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_core.checkpoints.numbers import Reals

HIGHEST = 127
TINY = float(np.finfo(np.float32).tiny)


@dataclass
class Error:
    """What rounding did to a tensor, added up piece by piece."""

    lost: float = 0.0
    """The sum of (w - w')²."""
    whole: float = 0.0
    """The sum of w²."""

    @property
    def relative(self) -> float:
        """rms(w - w') / rms(w); 0 for a tensor of zeros."""
        return (self.lost / self.whole) ** 0.5 if self.whole else 0.0


def peaks(rows: Reals) -> Reals:
    """The largest magnitude of each row (rows, numbers); NaN if the row holds one."""
    found: Reals = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return found


def scales(peak: Reals) -> Reals:
    """A scale (rows,) for each peak; 1 where it is zero, or too small for a scale."""
    found = peak / np.float32(HIGHEST)
    return np.where(found > TINY, found, np.float32(1))


def to_integers(rows: Reals, scale: Reals, error: Error) -> NDArray[np.int8]:
    """The integers (rows, numbers) of rows on the grids of their scales (rows,); the error is added up."""
    steps = rows * (np.float32(1) / scale)[:, None]
    nearest = np.rint(steps)
    squared = scale.astype(np.float64) ** 2
    error.whole += float(squared @ np.einsum("ij,ij->i", steps, steps))
    steps -= nearest
    error.lost += float(squared @ np.einsum("ij,ij->i", steps, steps))
    return nearest.astype(np.int8)


def to_reals(integers: NDArray[np.int8], scale: Reals) -> Reals:
    """The numbers (rows, numbers) that integers stand for."""
    return integers.astype(np.float32) * scale[:, None]
