"""Where examples come from (bundled digits, parquet files, arrays, functions of the user's own), and `augment`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_core import hookimpl
from compress_data.augment import Augment
from compress_data.digits import Digits
from compress_data.function import Import
from compress_data.npz import Npz
from compress_data.parquet import Parquet

if TYPE_CHECKING:
    from compress_core.parts import DataSource, Technique

__all__ = ["Augment", "Digits", "Import", "Npz", "Parquet"]


@hookimpl
def register_data_sources() -> list[type[DataSource]]:
    """The data sources of this plugin."""
    return [Digits, Import, Npz, Parquet]


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Augment]
