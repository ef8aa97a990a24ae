"""Arrays of any origin as columns and splits: what is checked, converted, and cut when it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compress_core.data import SPLITS, Columns, Splits
from compress_core.errors import DataError, suggest
from compress_data.splitting import cut

if TYPE_CHECKING:
    from collections.abc import Callable


def as_column(value: object, where: str) -> Tensor:
    """An array as a column: float64 becomes float32, whole numbers on one axis int64, images of bytes [0, 1].

    Args:
        value: a tensor, an array, or nested lists; the first axis counts the examples.
        where: what an error names.

    Raises:
        DataError: it is no array of numbers, it has no axis, or a number is missing, infinite or too large.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
    else:
        try:
            array = np.asarray(value)
            tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"it cannot be read as an array of numbers: {error}",
                where=where,
                mend="give numbers in arrays of one shape; number words and classes",
            ) from error
    if tensor.ndim == 0:
        raise DataError("it is a single number", where=where, mend="the first axis counts the examples")
    if tensor.is_complex():
        raise DataError("it holds complex numbers", where=where, mend="give two real columns")
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    elif tensor.dtype == torch.uint8 and tensor.ndim >= 3:
        tensor = tensor.float() / 255
    elif tensor.ndim == 1 and not tensor.is_floating_point() and tensor.dtype != torch.bool:
        unsigned, tensor = tensor.dtype == torch.uint64, tensor.long()
        if unsigned and len(wrong := torch.nonzero(tensor < 0)):
            row = int(wrong[0, 0])
            raise DataError(
                f"row {row} holds {int(tensor[row]) + 2**64}, more than 64 bits hold with a sign",
                where=where,
                mend="number what it counts from 0",
            )
    refuse_missing_numbers(tensor, where)
    return tensor.contiguous()


def refuse_missing_numbers(column: Tensor, where: str, row: Callable[[int], str] = "row {}".format) -> None:
    """Raise a `DataError` that names the first row with a number that is NaN or infinite."""
    if not column.is_floating_point() or torch.isfinite(column).all():
        return
    wrong = torch.nonzero(~torch.isfinite(column).flatten(1).all(1) if column.ndim > 1 else ~torch.isfinite(column))
    first = int(wrong[0, 0])
    values = column[first].flatten()
    value = float(values[~torch.isfinite(values)][0])
    raise DataError(
        f"{row(first)} holds {value}; {len(wrong)} of {len(column)} rows have such an entry",
        where=where,
        mend="leave these examples out or fill them in",
    )


def splits_from(
    found: object, *, validation: float, test: float, label: str, seed: int, where: str, about: Mapping[str, Any]
) -> Splits:
    """Splits from a mapping of split to mapping of column to array; what is missing is cut from `train`.

    Args:
        found: the mapping; `validation` and `test` may be missing.
        validation: the share of train that becomes the validation split if there is none.
        test: the share of train that becomes the test split if there is none.
        label: the column whose classes keep their shares when train is cut.
        seed: decides which example goes where.
        where: what errors name.
        about: what a person would want to know.

    Raises:
        DataError: a split or a column is not what it should be.
    """
    if not isinstance(found, Mapping):
        raise DataError(f"it is {type(found).__name__}, no mapping of splits", where=where, mend=_EXPECTED)
    for name in found:
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}", where=where, mend=suggest(str(name), SPLITS))
    if "train" not in found:
        raise DataError("there is no split 'train'", where=where, mend=_EXPECTED)
    splits = {name: _columns(found[name], f"{where}, {name}") for name in SPLITS if name in found}
    refuse_other_shapes(splits, where)
    shares = {name: share for name, share in (("validation", validation), ("test", test)) if name not in splits}
    try:
        if shares:
            train = splits["train"]
            parts = cut(classes_of(train, label), tuple(shares.values()), seed)
            splits |= {
                split: {name: column[part] for name, column in train.items()}
                for split, part in zip(("train", *shares), parts, strict=True)
            }
        return Splits(**{name: Columns(columns) for name, columns in splits.items()}, about=dict(about))
    except DataError as error:
        raise error.inside(where) from None


def classes_of(columns: Mapping[str, Tensor], label: str) -> Tensor:
    """The class of each example; one for all where the label is no class."""
    count = len(next(iter(columns.values())))
    column = columns.get(label)
    if column is None or column.ndim != 1 or column.is_floating_point():
        return torch.zeros(count, dtype=torch.int64)
    return column.long()


_EXPECTED = "give {'train': {'image': …, 'label': …}, 'validation': …, 'test': …}; the last two may be left out"


def _columns(found: object, where: str) -> dict[str, Tensor]:
    if isinstance(found, Columns):
        found = found.columns
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"it is {type(found).__name__}, no mapping of columns", where=where, mend=_EXPECTED)
    columns = {str(name): as_column(value, f"{where}, column {name!r}") for name, value in found.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(
            f"the columns have different lengths: {lengths}", where=where, mend="give one entry for each example"
        )
    if not next(iter(lengths.values())):
        raise DataError("it is empty", where=where, mend="give it examples, or leave it out")
    return columns


def refuse_other_shapes(splits: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
    """Raise a `DataError` if an entry of a column has another shape or format in one split than in train."""
    train = splits["train"]
    for split, columns in splits.items():
        for name in set(columns) & set(train):
            mine, theirs = columns[name], train[name]
            if (mine.shape[1:], mine.dtype) != (theirs.shape[1:], theirs.dtype):
                raise DataError(
                    f"an entry of column {name!r} is {_kind(mine)} in {split} and {_kind(theirs)} in train",
                    where=where,
                    mend="bring all splits into one shape and format",
                )


def _kind(column: Tensor) -> str:
    return f"{str(column.dtype).removeprefix('torch.')} {tuple(column.shape[1:])}"
