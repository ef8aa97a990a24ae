"""What may become of a tensor: each job says what it writes before it reads anything, and works a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from compress_core.checkpoints.headers import BITS, Place, Tensor
from compress_core.checkpoints.numbers import Raw, Reals, fits, from_float32, to_float32
from compress_core.checkpoints.reading import Reader
from compress_core.checkpoints.rounding import Error, peaks, scales, to_integers, to_reals
from compress_core.errors import ArtifactError

PIECE = 1 << 18
"""Numbers that are in memory at once; of longer rows too."""
COPIED = 1 << 22
"""Bytes that are copied at once."""

Put = Callable[[str, int, Raw], None]
"""Writes bytes at an offset within a tensor of the new checkpoint."""


def scale_name(name: str) -> str:
    """Of the scales of a tensor: `layer.weight_scale` for `layer.weight`, as compressed-tensors has it."""
    return f"{name}_scale"


class Job(Protocol):
    """Writes one tensor, with its scales if it has any."""

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What is written, the tensor first."""

    def run(self, reader: Reader, put: Put) -> None:
        """Read and write, a piece at a time."""


@dataclass(frozen=True)
class Copy:
    """The same bytes."""

    place: Place

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The tensor itself."""
        return (self.place.tensor,)

    def run(self, reader: Reader, put: Put) -> None:
        """Copy."""
        for offset, raw in reader.pieces(self.place, COPIED):
            put(self.place.tensor.name, offset, raw)


@dataclass(frozen=True)
class Cast:
    """The same numbers in another floating-point format, through float32."""

    place: Place
    dtype: str

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The tensor in its new format."""
        return (Tensor(self.place.tensor.name, self.dtype, self.place.tensor.shape),)

    def run(self, reader: Reader, put: Put) -> None:
        """Convert.

        Raises:
            ArtifactError: a number is too large for the format.
        """
        before = self.place.tensor
        width = BITS[before.dtype] // 8
        for offset, raw in reader.pieces(self.place, PIECE * width):
            values = to_float32(raw, before.dtype)
            put(before.name, offset // width * BITS[self.dtype] // 8, _fitting(values, self.dtype, self.place))


@dataclass(frozen=True)
class Round:
    """8-bit integers with a scale for each block of numbers, a row or a group of one."""

    place: Place
    block: int
    error: Error = field(default_factory=Error)
    """Of what has been written."""

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The integers in the shape of the tensor, and the scales (out, blocks of a row)."""
        name, shape = self.place.tensor.name, self.place.tensor.shape
        return (
            Tensor(name, "I8", shape),
            Tensor(scale_name(name), "F32", (shape[0], self.place.tensor.count // self.block // shape[0])),
        )

    def run(self, reader: Reader, put: Put) -> None:
        """Round, once the largest number of a block is known: a block that is longer than a piece is read twice.

        Raises:
            ArtifactError: there is NaN or infinity.
        """
        integers, scale_of = self.outputs
        dtype = self.place.tensor.dtype
        width = BITS[dtype] // 8
        for first, rows, pieces in _portions(self.place.tensor.count, self.block):
            peak = np.zeros(rows, np.float32)
            values = np.empty((0, 0), np.float32)
            for begin, count in pieces:
                values = to_float32(reader.read(self.place, begin * width, count * width), dtype).reshape(rows, -1)
                peak = np.maximum(peak, peaks(values))
            self._refuse_holes(peak, first)
            scale = scales(peak)
            for begin, count in pieces:
                if len(pieces) > 1:
                    values = to_float32(reader.read(self.place, begin * width, count * width), dtype).reshape(1, -1)
                put(integers.name, begin, to_integers(values, scale, self.error).view(np.uint8).ravel())
            put(scale_of.name, first * 4, scale.astype("<f4").view(np.uint8))

    def _refuse_holes(self, peak: Reals, first: int) -> None:
        if np.isfinite(peak).all():
            return
        name, shape = self.place.tensor.name, self.place.tensor.shape
        block = first + int(np.argmin(np.isfinite(peak)))
        row = block * self.block // (self.place.tensor.count // shape[0])
        raise ArtifactError(
            f"{name!r} holds NaN or infinity in row {row}",
            where=str(self.place.file),
            mend=f"mend the checkpoint, or leave the tensor as it is: --exclude '{name}'",
        )


@dataclass(frozen=True)
class Widen:
    """The numbers that 8-bit integers and their scales stand for."""

    place: Place
    scale: Place
    dtype: str

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The tensor in its new format."""
        return (Tensor(self.place.tensor.name, self.dtype, self.place.tensor.shape),)

    def run(self, reader: Reader, put: Put) -> None:
        """Multiply.

        Raises:
            ArtifactError: a number is too large for the format.
        """
        name, count = self.place.tensor.name, self.place.tensor.count
        width = BITS[self.scale.tensor.dtype] // 8
        for first, rows, pieces in _portions(count, count // self.scale.tensor.count):
            scale = to_float32(reader.read(self.scale, first * width, rows * width), self.scale.tensor.dtype)
            for begin, size in pieces:
                values = to_reals(reader.read(self.place, begin, size).view(np.int8).reshape(rows, -1), scale)
                put(name, begin * BITS[self.dtype] // 8, _fitting(values.ravel(), self.dtype, self.place))


def _portions(count: int, block: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Blocks that are handled together: the first, how many, and the pieces (begin, numbers) in which they are read.

    As many whole blocks as a piece holds, in one piece; or a longer block alone, in several.
    """
    if not count:
        return
    together = max(1, PIECE // block)
    for first in range(0, count // block, together):
        rows = min(together, count // block - first)
        begin, end = first * block, (first + rows) * block
        size = rows * block if block <= PIECE else PIECE
        yield first, rows, [(at, min(size, end - at)) for at in range(begin, end, size)]


def _fitting(values: Reals, dtype: str, place: Place) -> Raw:
    if not fits(values, dtype):
        raise ArtifactError(
            f"{place.tensor.name!r} holds numbers that are too large for {dtype}",
            where=str(place.file),
            mend="choose a format with a wider range: bfloat16 or float32",
        )
    return from_float32(values, dtype)
