"""Data in one file of NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from compress_core.errors import DataError
from compress_core.parts import DataSource

if TYPE_CHECKING:
    import numpy as np

    from compress_core.data import Splits

_SPLITS = ("train", "validation", "test")


class Npz(DataSource):
    """A .npz file with arrays `train_image`, `train_label`, `test_image`, … or simply `image` and `label`.

    The part before the first underscore names the split; arrays without any become the train split. What is missing
    of validation and test is cut from train. Arrays are converted as those of `import`.
    """

    name = "npz"

    path: str = Field(min_length=1)
    """The file, from the working directory."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """The share of train that is cut off if there are no arrays `validation_…`."""
    test: float = Field(default=0.2, gt=0, lt=1)
    """The share of train that is cut off if there are no arrays `test_…`."""
    label: str = "label"
    """The column whose classes keep their shares when train is cut."""

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (Path(self.path),)

    def splits(self, seed: int) -> Splits:
        """Read the arrays.

        Raises:
            DataError: the file is missing, is no .npz file, or holds arrays that make no splits.
        """
        from compress_data.arrays import splits_from

        return splits_from(
            _by_split(self._read(), self.path),
            validation=self.validation,
            test=self.test,
            label=self.label,
            seed=seed,
            where=self.path,
            about={"source": Path(self.path).name},
        )

    def _read(self) -> dict[str, np.ndarray]:
        import numpy as np

        try:
            arrays = np.load(self.path, allow_pickle=False)
            if isinstance(arrays, np.lib.npyio.NpzFile):
                with arrays:
                    return {name: arrays[name] for name in arrays.files}
        except FileNotFoundError as error:
            raise DataError("there is no such file", where=self.path, mend=f"looked in {Path.cwd()}") from error
        except Exception as error:  # zipfile, zlib, lzma and numpy each have their own for a damaged file
            raise DataError(f"it is no .npz file of plain arrays: {error}", where=self.path, mend=_MEND) from error
        raise DataError("it holds one array without a name", where=self.path, mend=_MEND)


_MEND = "write it with numpy.savez(path, train_image=…, train_label=…), with arrays of numbers"


def _by_split(arrays: dict[str, np.ndarray], where: str) -> dict[str, dict[str, np.ndarray]]:
    named = {name: split for name in arrays if (split := name.partition("_")[0]) in _SPLITS and "_" in name}
    if not named:
        return {"train": arrays} if arrays else {}
    if strange := sorted(set(arrays) - set(named)):
        raise DataError(
            f"the array {strange[0]!r} belongs to no split",
            where=where,
            mend=f"call it train_{strange[0]}, or leave it out",
        )
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, split in named.items():
        found.setdefault(split, {})[name.partition("_")[2]] = arrays[name]
    return found
