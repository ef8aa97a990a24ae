"""Batches from a data source, and the data stage: `python -m compress_core.data`.

A batch is a dictionary of tensors whose first axis counts the examples. A split answers `len()`,
`take(indices) -> batch` and `column(name) -> tensor`; `Columns` does so for tensors in memory or mapped from a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from compress_core.errors import ArtifactError, CompressError, DataError
from compress_core.files import read_manifest, replacing, write_manifest, write_tensors
from compress_core.seeding import seeded

if TYPE_CHECKING:
    from compress_core.recipe import Recipe

Batch = dict[str, Tensor]

SPLITS = ("train", "validation", "test")


class Split(Protocol):
    """Examples that can be taken by their index."""

    def __len__(self) -> int:
        """The number of examples."""

    def take(self, indices: Tensor) -> Batch:
        """The examples at `indices` (int64, one axis)."""

    def column(self, name: str) -> Tensor:
        """One whole column; a `DataError` if there is none."""


class Columns:
    """A split that holds every column as one tensor."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the columns have different lengths: {lengths}")
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, indices: Tensor) -> Batch:
        """The examples at `indices`."""
        return {name: column[indices] for name, column in self.columns.items()}

    def column(self, name: str) -> Tensor:
        """One whole column.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.columns:
            raise DataError(f"the data have no column {name!r}", mend=f"columns: {', '.join(sorted(self.columns))}")
        return self.columns[name]


@dataclass(frozen=True)
class Splits:
    """The three splits: learn from `train`, choose by `validation`, report on `test`."""

    train: Columns
    validation: Columns
    test: Columns
    about: Mapping[str, Any] = field(default_factory=dict)
    """What a person would want to know: source, names of the classes, normalization. JSON values."""

    def __post_init__(self) -> None:
        names = set(self.train.columns)
        for split in SPLITS:
            columns: Columns = getattr(self, split)
            if not len(columns):
                raise DataError(f"the {split} split is empty", mend="give it a share of the examples")
            if set(columns.columns) != names:
                raise DataError(
                    f"the {split} split has the columns {sorted(columns.columns)}, train has {sorted(names)}"
                )


def batches(
    split: Split,
    size: int,
    *,
    order: Tensor | None = None,
    drop_last: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Cut a split into batches of `size`, in `order` (a permutation) or as it lies.

    A smaller last batch is left out with `drop_last`, unless it is the only one.
    """
    indices = torch.arange(len(split)) if order is None else order
    full = len(indices) - len(indices) % size if drop_last and len(indices) >= size else len(indices)
    for start in range(0, full, size):
        batch = split.take(indices[start : min(start + size, full)])
        yield batch if str(device) == "cpu" else {name: column.to(device) for name, column in batch.items()}


def batch_count(examples: int, size: int, *, drop_last: bool) -> int:
    """How many batches `batches` gives."""
    return max(1, examples // size) if drop_last else -(-examples // size)


def save_splits(splits: Splits, folder: Path) -> None:
    """Write the splits as one safetensors file each, beside a manifest; `folder` is replaced whole."""
    with replacing(folder) as temporary:
        for name in SPLITS:
            write_tensors(temporary / f"{name}.safetensors", getattr(splits, name).columns)
        write_manifest(temporary, {"kind": "data", "about": dict(splits.about)})


def load_splits(folder: Path) -> Splits:
    """Read splits that `save_splits` wrote; the tensors are mapped, not copied.

    Raises:
        ArtifactError: the folder is missing or was altered.
    """
    manifest = read_manifest(folder, kind="data")
    try:
        columns = {name: Columns(load_file(folder / f"{name}.safetensors")) for name in SPLITS}
        return Splits(**columns, about=manifest["about"])
    except Exception as error:
        raise ArtifactError(
            f"it holds no splits: {error}", where=str(folder), mend="delete it and run `dvc repro data`"
        ) from error


def make_splits(recipe: Recipe) -> Splits:
    """The examples of a recipe's data source, which draws whatever is random from the recipe's seed.

    Raises:
        CompressError: they cannot be read, or are not what the recipe says.
    """
    try:
        with seeded(recipe.seed):
            return recipe.data.splits(recipe.seed)
    except CompressError as error:
        raise error.inside(f"{recipe.path}, data") from error.__cause__


def main() -> None:
    """Make artifacts/data from the recipe's data source."""
    from compress_core.recipe import read_recipe
    from compress_core.workspace import Workspace, ending_with_status

    with ending_with_status():
        workspace = Workspace.here()
        splits = make_splits(read_recipe(workspace.params))
        save_splits(splits, workspace.artifact("data"))
        print(
            f"data: {len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test examples"
        )


if __name__ == "__main__":
    main()
