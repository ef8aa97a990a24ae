"""Every error that a user can cause or mend, in one tree.

    CompressError
    ├── RecipeError      params.yaml: the file, the step and the field
    ├── PluginError      a plugin that is missing, broken, misspelt or clashes with another
    ├── ModelError       a factory, or a network that a technique cannot handle
    │   └── BrokenModelError     a network that no longer runs after a technique changed it
    ├── DataError        a data source, a column, a label
    ├── TrainingError    a training that cannot start or has diverged
    └── ArtifactError    a saved model that is missing, altered or cannot be represented

Each carries *where* it happened, *what* is wrong and *how to mend it*; our own commands print
these three lines and end with exit status 2. Any other exception is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb

EXIT_STATUS = 2
"""What our own commands end with after a `CompressError`."""


class CompressError(Exception):
    """What is wrong, where, and how to mend it."""

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  to mend it: {self.mend}" if self.mend else head

    def inside(self, where: str) -> CompressError:
        """The same error, with an outer place put before its own."""
        self.where = f"{where}: {self.where}" if self.where else where
        return self


class RecipeError(CompressError):
    """params.yaml does not describe a pipeline that can run."""


class PluginError(CompressError):
    """A plugin is missing, broken, misspelt or clashes with another."""


class ModelError(CompressError):
    """A network cannot be built, or cannot be handled by a technique."""


class BrokenModelError(ModelError):
    """A network does not run, or gives no numbers, after a technique changed it."""


class DataError(CompressError):
    """The data are not what the recipe says."""


class TrainingError(CompressError):
    """A training cannot start, or has diverged."""


class ArtifactError(CompressError):
    """A saved model is missing, altered, or cannot be represented."""


def place_of(error: BaseException) -> str:
    """The innermost line of somebody's own code behind an exception, as ` (mynet.py, line 8)`, or nothing."""
    ours = str(Path(__file__).parent)
    frames = [
        frame
        for frame in extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith((ours, "<"))
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """How to mend an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    if near := get_close_matches(name, names, n=1):
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else "none are known"
