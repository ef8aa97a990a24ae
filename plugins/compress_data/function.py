"""Data that a function of the user's own gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress_core.errors import CompressError, DataError
from compress_core.imports import resolve
from compress_core.parts import DataSource

if TYPE_CHECKING:
    from compress_core.data import Splits


class Import(DataSource):
    """What a function returns: `Splits`, or {"train": {"image": array, "label": array}, "validation": …, "test": …}.

    Arrays are tensors, NumPy arrays or nested lists, one entry for each example. float64 becomes float32, whole
    numbers on one axis int64, bytes on three axes or more (images) float32 in [0, 1]. A function with a parameter
    `seed` is given the recipe's; torch, NumPy and `random` are seeded with it too.
    """

    name = "import"

    factory: str
    """The function's import string, `package.module:function`, found from the working directory."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The function's arguments."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """The share of train that is cut off if the function gives no validation split."""
    test: float = Field(default=0.2, gt=0, lt=1)
    """The share of train that is cut off if the function gives no test split."""
    label: str = "label"
    """The column whose classes keep their shares when train is cut."""

    def imports(self) -> tuple[str, ...]:
        """The function."""
        return (self.factory,)

    def splits(self, seed: int) -> Splits:
        """Call the function and check what it gives.

        Raises:
            DataError: it does not resolve, raises, or gives something else.
        """
        from compress_core.data import SPLITS, Splits
        from compress_data.arrays import splits_from

        make = resolve(self.factory, DataError, "factory")
        if not callable(make):
            raise DataError(f"{self.factory!r} is no function", where="factory")
        found = self._call(make, seed)
        about: Mapping[str, Any] = {"source": self.factory}
        if isinstance(found, Splits):
            about = found.about
            found = {name: getattr(found, name) for name in SPLITS}
        return splits_from(
            found,
            validation=self.validation,
            test=self.test,
            label=self.label,
            seed=seed,
            where=self.factory,
            about=about,
        )

    def _call(self, make: Any, seed: int) -> object:
        from compress_core.seeding import seeded

        params: Mapping[str, Any] = self.params
        if "seed" not in params and "seed" in _parameters(make):
            params = {**params, "seed": seed}
        with seeded(seed):
            try:
                return make(**params)
            except CompressError:
                raise
            except Exception as error:
                raise DataError(
                    f"{self.factory!r} fails with {type(error).__name__}: {error}", where="params"
                ) from error


def _parameters(make: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(make).parameters)
    except (TypeError, ValueError):
        return ()
