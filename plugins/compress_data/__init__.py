"""Where examples come from: the bundled digits, parquet files, arrays and functions of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_core import hookimpl
from compress_data.digits import Digits
from compress_data.function import Import
from compress_data.npz import Npz
from compress_data.parquet import Parquet

if TYPE_CHECKING:
    from compress_core.parts import DataSource

__all__ = ["Digits", "Import", "Npz", "Parquet"]


@hookimpl
def register_data_sources() -> list[type[DataSource]]:
    """The data sources of this plugin."""
    return [Digits, Import, Npz, Parquet]
