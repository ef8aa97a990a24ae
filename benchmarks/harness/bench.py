"""What a benchmark is given: its mode, its seeds, its data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compress_core.errors import DataError

DATA = "COMPRESS_DATA"
MODELS = "COMPRESS_MODELS"


@dataclass(frozen=True)
class Bench:
    """One run of a benchmark."""

    full: bool = False
    """Whether it may take as long as its docstring says of `--full`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """What anything random is repeated with."""
    threads: int = 1
    """Threads of torch and of every runtime; torch's own are already set."""
    say: Callable[[str], None] = lambda text: None
    """Tells the person who waits how far the work is, a line at a time."""

    def data(self, name: str) -> Path:
        """The folder of a data set, such as `mnist`.

        Raises:
            DataError: it is not there.
        """
        return _found(DATA, name, "the data sets")

    def weights(self, name: str) -> Path:
        """The file of published weights, such as `resnet20-cifar10`.

        Raises:
            DataError: it is not there.
        """
        return _found(MODELS, f"{name}.safetensors", "published weights")


def _found(variable: str, name: str, what: str) -> Path:
    """A file or folder in the folder that an environment variable names."""
    folder = os.environ.get(variable)
    if not folder:
        raise DataError(
            f"{name!r} is needed, and {variable} is not set",
            where=variable,
            mend=f"set {variable} to the folder of {what}",
        )
    path = Path(folder) / name
    if not path.exists():
        raise DataError(f"there is no {name!r} in the folder", where=variable, mend=f"put it there, or mend {variable}")
    return path
