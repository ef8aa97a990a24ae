"""Rows of parquet files, each with its place, so that an error can name the file and the row."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compress_core.errors import DataError, suggest


@dataclass(frozen=True)
class Rows:
    """Some rows of some files."""

    table: pa.Table
    files: tuple[str, ...]
    starts: tuple[int, ...]
    """The number of the first row of each file, counted over all files."""
    numbers: np.ndarray
    """The number of each row of the table, counted over all files."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def place(self, index: int) -> str:
        """The file and row of one of the rows."""
        number = int(self.numbers[index])
        file = bisect_right(self.starts, number) - 1
        return f"{self.files[file]}, row {number - self.starts[file]}"

    def take(self, indices: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(self.table.take(pa.array(indices)), self.files, self.starts, self.numbers[indices])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column."""
        return self.table.column(name)


def read_rows(files: Sequence[Path], columns: Sequence[str]) -> Rows:
    """Read some columns of files that belong together.

    Raises:
        DataError: a file is missing, is no parquet file, is empty, or has no such column.
    """
    tables = [_read(file, columns) for file in files]
    try:
        table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    except pa.ArrowInvalid as error:
        raise DataError(f"the files have different columns: {error}", where=", ".join(map(str, files))) from error
    if not table.num_rows:
        raise DataError("it has no rows", where=", ".join(map(str, files)), mend="give a file with examples")
    lengths = [table.num_rows for table in tables]
    starts = tuple(int(start) for start in np.cumsum([0, *lengths[:-1]]))
    return Rows(table, tuple(file.name for file in files), starts, np.arange(table.num_rows))


def class_names(file: Path, label: str) -> list[str] | None:
    """The names of the classes, where Hugging Face's `datasets` has written them into the file."""
    metadata = pq.read_schema(file).metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in feature["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _plain(table: pa.Table) -> pa.Table:
    """The table with the values themselves where a column holds codes and their dictionary."""
    columns = {
        name: column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(columns)


def _read(file: Path, columns: Sequence[str]) -> pa.Table:
    if not file.is_file():
        raise DataError(
            "there is no such file",
            where=str(file),
            mend="set COMPRESS_DATA or `folder` to the folder of the data, and `train`, `validation`, `test` "
            "to its files (null for none)",
        )
    try:
        known = pq.read_schema(file).names
        for name in columns:
            if name not in known:
                raise DataError(
                    f"it has no column {name!r}",
                    where=str(file),
                    mend=f"{suggest(name, known)} (columns: {', '.join(known)})",
                )
        return _plain(pq.read_table(file, columns=list(columns)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"it cannot be read as a parquet file: {error}", where=str(file), mend="was it downloaded whole?"
        ) from error
