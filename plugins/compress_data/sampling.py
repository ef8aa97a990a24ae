"""Choosing and cutting rows so that the classes of the label keep their shares, before anything is decoded."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from compress_data.splitting import cut, stratified_order
from compress_data.tables import Rows


def sample(rows: Rows, limit: int | None, label: str, seed: int) -> Rows:
    """At most `limit` of the rows, drawn with the classes in their shares."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.take(stratified_order(_classes(rows, label), seed)[:limit].numpy())


def cut_rows(rows: Rows, shares: tuple[float, ...], label: str, seed: int) -> list[Rows]:
    """What is left of the rows, and parts with the given shares.

    Raises:
        DataError: there are too few rows.
    """
    return [rows.take(part.numpy()) for part in cut(_classes(rows, label), shares, seed)]


def _classes(rows: Rows, label: str) -> Tensor:
    """The class of each row; one for all where the label is a number to predict."""
    column = rows.column(label).combine_chunks()
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        return torch.zeros(len(rows), dtype=torch.int64)
    codes = column.dictionary_encode(null_encoding="encode").indices
    return torch.from_numpy(np.array(codes, dtype=np.int64))
