"""Columns of parquet files as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from compress_core.errors import DataError
from compress_data.arrays import as_column, refuse_missing_numbers
from compress_data.images import decode
from compress_data.tables import Rows
from compress_data.words import encode, vocabulary_of

if TYPE_CHECKING:
    from compress_data.parquet import Parquet


@dataclass(frozen=True)
class Conversion:
    """What the training rows decide for all splits."""

    source: Parquet
    vocabulary: Sequence[str] = ()
    classes: Mapping[str, int] | None = None
    """Numbers of the classes where labels are names, in alphabetical order."""
    size: tuple[int, int] | None = None
    """Height and width of the images."""
    channels: int | None = None

    @classmethod
    def fitted(cls, source: Parquet, train: Rows) -> Conversion:
        """Learn the vocabulary, the names of the classes and the size of the images from the training rows."""
        vocabulary = vocabulary_of(_texts(train, source.text), source.vocabulary) if source.text else ()
        label = train.column(source.label)
        classes = None
        if _is_name(label.type):
            names = sorted(name for name in pc.unique(label).to_pylist() if name is not None)
            classes = {str(name): number for number, name in enumerate(names)}
        found = cls(source, vocabulary, classes, source.size, source.channels)
        if not source.image:
            return found
        first = train.take(np.arange(1))
        _, channels, height, width = found._decoded(first, source.image).shape
        return replace(found, size=(height, width), channels=channels)

    def about(self, class_names: Sequence[str] | None) -> dict[str, Any]:
        """What a person would want to know of the conversion."""
        found: dict[str, Any] = {}
        if self.classes is not None:
            found["classes"] = list(self.classes)
        elif class_names:
            found["classes"] = list(class_names)
        if self.source.image:
            found["normalization"] = {"mean": list(self.source.mean), "std": list(self.source.std)}
        if self.source.text:
            found["vocabulary"] = list(self.vocabulary)
        return found

    def columns(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of some rows.

        Raises:
            DataError: a row is not what it should be; the message names it.
        """
        found: dict[str, Tensor] = {}
        if self.source.image:
            found["image"] = self._images(rows, self.source.image)
        if self.source.text:
            found["ids"], found["mask"] = encode(_texts(rows, self.source.text), self.vocabulary, self.source.length)
        for name in self.source.numbers:
            found[name] = _numbers(rows, name)
        found["label"] = self._labels(rows)
        return found

    def _decoded(self, rows: Rows, name: str) -> np.ndarray:
        scale = self.source.size is not None
        return decode(_pictures(rows, name), self.size, self.channels, rows.place, scale=scale)

    def _images(self, rows: Rows, name: str) -> Tensor:
        pixels = torch.from_numpy(self._decoded(rows, name)).float()
        pixels /= 255
        for values, change in ((self.source.mean, pixels.sub_), (self.source.std, pixels.div_)):
            if values:
                change(_per_channel(values, pixels.shape[1]))
        return pixels

    def _labels(self, rows: Rows) -> Tensor:
        column = _without_nulls(rows, self.source.label)
        if self.classes is not None:
            return torch.tensor([self._class(name, rows, index) for index, name in enumerate(column.to_pylist())])
        if not pa.types.is_integer(column.type) and not pa.types.is_boolean(column.type):
            return _numbers(rows, self.source.label)
        values = column.to_pylist()
        if wrong := [row for row, value in enumerate(values) if not 0 <= value < 2**63]:
            row = wrong[0]
            raise DataError(
                f"column {self.source.label!r} is {values[row]}, no class; {len(wrong)} of {len(values)} are "
                "below 0 or too large",
                where=rows.place(row),
                mend="number the classes from 0; unlabelled test files hold -1: use another file. "
                "Numbers to predict are stored as floating point",
            )
        return torch.tensor(values, dtype=torch.int64)

    def _class(self, name: object, rows: Rows, index: int) -> int:
        assert self.classes is not None
        if str(name) not in self.classes:
            raise DataError(
                f"column {self.source.label!r} is {str(name)!r}, a class that no training example has",
                where=rows.place(index),
                mend=f"classes: {', '.join(self.classes)}",
            )
        return self.classes[str(name)]


def _is_name(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _without_nulls(rows: Rows, name: str) -> pa.ChunkedArray:
    column = rows.column(name)
    if column.null_count:
        index = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"column {name!r} is empty there", where=rows.place(index), mend="leave the row out")
    return column


def _texts(rows: Rows, name: str) -> list[str]:
    column = _without_nulls(rows, name)
    if not _is_name(column.type):
        raise DataError(
            f"column {name!r} holds {column.type}, no text", where=rows.files[0], mend="name the column of the texts"
        )
    return [str(text) for text in column.to_pylist()]


def _pictures(rows: Rows, name: str) -> list[bytes | None]:
    column = rows.column(name)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not pa.types.is_binary(column.type) and not pa.types.is_large_binary(column.type):
        raise DataError(
            f"column {name!r} holds {column.type}, no images",
            where=rows.files[0],
            mend="name a column of encoded images (bytes, or a struct with a field `bytes`)",
        )
    return [None if picture is None else bytes(picture) for picture in column.to_pylist()]


def _numbers(rows: Rows, name: str) -> Tensor:
    column = _without_nulls(rows, name)
    try:
        found = torch.as_tensor(np.array(column.to_pylist()))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {name!r} holds {column.type}, or lists of different lengths: {error}",
            where=rows.files[0],
            mend="name columns of numbers, or of lists of numbers of one length",
        ) from error
    refuse_missing_numbers(found, f"column {name!r}", rows.place)
    return as_column(found, f"{rows.files[0]}, column {name!r}")


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    if len(values) not in {1, channels}:
        raise DataError(
            f"{len(values)} numbers for {channels} channels",
            where="mean and std",
            mend="give one number, or one for each channel",
        )
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
