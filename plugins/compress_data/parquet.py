"""Data in parquet files as Hugging Face's `datasets` lays them out: images, texts, numbers, and a label."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from compress_core.errors import CompressError, DataError
from compress_core.parts import DataSource

if TYPE_CHECKING:
    from compress_core.data import Splits
    from compress_data.tables import Rows

FOLDER_VARIABLE = "COMPRESS_DATA"
"""The folder of the data sets of this machine."""


class Parquet(DataSource):
    """Parquet files with images, texts or numbers, and a label.

    Columns of the result: image (channels, height, width), float32 in [0, 1] before `mean` and `std`; ids and mask
    (length,), the numbers of a text's words (0 is padding, 1 any unknown word; the vocabulary comes from the training
    texts and is kept with the data) and where there are words; the columns of `numbers` under their own names; label,
    int64 classes, or float32 for a regression.
    """

    name = "parquet"

    folder: str = ""
    """The folder of the files; a relative one lies in the folder that COMPRESS_DATA names, or else in the working
    directory."""
    train: str = "train.parquet"
    """The training examples: a file, or several by a pattern such as `train-*.parquet`."""
    validation: str | None = None
    """The validation examples; unless given, they are cut from the training examples."""
    test: str | None = "test.parquet"
    """The test examples; with null they are cut from the training examples."""
    image: str | None = None
    """The column of the images."""
    text: str | None = None
    """The column of the texts."""
    numbers: tuple[str, ...] = ()
    """Columns of numbers, or of lists of numbers of one length, that go in as they are."""
    label: str = "label"
    """The column of the labels: whole numbers from 0, names of classes, or numbers to predict."""
    limit: int | None = Field(default=None, ge=2)
    """At most that many of the training examples, and of the validation file if there is one."""
    test_limit: int | None = Field(default=None, ge=1)
    """At most that many examples of the test file."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """The share of the training examples that is cut off if there is no validation file."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """The share of the training examples that is cut off if there is no test file."""
    size: tuple[int, int] | None = None
    """Height and width to scale the images to; unless given, all must have one size."""
    channels: int | None = None
    """1 for grey images, 3 for colours; unless given, as the first image has it."""
    mean: tuple[float, ...] = ()
    """Taken from the pixels of each channel, or of all channels if it is one number; nothing unless given."""
    std: tuple[float, ...] = ()
    """Divides the pixels of each channel, or of all channels if it is one number; 1 unless given."""
    vocabulary: int = Field(default=10_000, ge=3)
    """The largest number of different words, padding and the unknown word included."""
    length: int = Field(default=64, ge=1)
    """The number of words to which texts are cut or padded."""

    @model_validator(mode="after")
    def _something_goes_in(self) -> Parquet:
        if self.image is None and self.text is None and not self.numbers:
            raise ValueError("name what goes into the network: `image`, `text` or `numbers`, such as `image: image`")
        if self.channels not in {None, 1, 3}:
            raise ValueError("`channels` is 1 (grey) or 3 (colours)")
        if self.size is not None and min(self.size) < 1:
            raise ValueError("`size` is the height and the width in pixels, such as [32, 32]")
        if any(value <= 0 for value in self.std):
            raise ValueError("`std` divides: it must be above 0")
        taken = [*(["image"] if self.image else []), *(["ids", "mask"] if self.text else []), "label"]
        if clash := sorted({*taken} & {*self.numbers}):
            raise ValueError(f"the column {clash[0]!r} in `numbers` has the name of another column of the result")
        return self

    def files(self) -> tuple[Path, ...]:
        """The files, those of a pattern in the order of their names."""
        return tuple(file for name in (self.train, self.validation, self.test) if name for file in self._files(name))

    def splits(self, seed: int) -> Splits:
        """Read, cut and convert the examples.

        Raises:
            DataError: a file, a column or a row is not what it should be; the message names it.
        """
        from compress_core.data import Columns, Splits
        from compress_data.arrays import refuse_other_shapes
        from compress_data.conversion import Conversion

        rows = self._rows(seed)
        conversion = Conversion.fitted(self, rows["train"])
        about = {
            "source": Path(self.folder).name or Path(self.train).parent.name,
            "rows": {split: len(found) for split, found in rows.items()},
            **conversion.about(self._class_names()),
        }
        columns = {split: conversion.columns(found) for split, found in rows.items()}
        refuse_other_shapes(columns, self.train)
        return Splits(**{split: Columns(found) for split, found in columns.items()}, about=about)

    def _rows(self, seed: int) -> dict[str, Rows]:
        """The rows of each split, before anything is decoded."""
        from compress_data.sampling import cut_rows, sample
        from compress_data.tables import read_rows

        wanted = (self.image, self.text, *self.numbers, self.label)
        columns = list(dict.fromkeys(name for name in wanted if name is not None))
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = {split: read_rows(self._files(name), columns) for split, name in named.items() if name}
        limits = {"train": self.limit, "validation": self.limit, "test": self.test_limit}
        rows = {split: sample(found, limits[split], self.label, seed) for split, found in rows.items()}
        shares = {"validation": self.validation_share, "test": self.test_share}
        missing = {split: share for split, share in shares.items() if split not in rows}
        if missing:
            try:
                parts = cut_rows(rows["train"], tuple(missing.values()), self.label, seed)
            except CompressError as error:
                raise error.inside(self.train) from None
            rows |= dict(zip(("train", *missing), parts, strict=True))
        return rows

    def _class_names(self) -> list[str] | None:
        from compress_data.tables import class_names

        return class_names(self._files(self.train)[0], self.label)

    def _files(self, name: str) -> tuple[Path, ...]:
        base, pattern = Path(os.environ.get(FOLDER_VARIABLE) or ".") / self.folder, Path(name)
        if "*" not in name:
            return (base / name,)
        if pattern.is_absolute():
            base, pattern = Path(pattern.anchor), pattern.relative_to(pattern.anchor)
        try:
            found = tuple(sorted(base.glob(str(pattern))))
        except ValueError as error:
            raise DataError(
                f"{name!r} is no pattern: {error}", where=str(base), mend="such as train-*.parquet"
            ) from error
        if not found:
            raise DataError(
                f"no file fits the pattern {name!r}",
                where=str(base),
                mend=f"set {FOLDER_VARIABLE} or `folder` to the folder of the data",
            )
        return found
