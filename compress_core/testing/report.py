"""What a check ends with: nothing to say, a refusal by the technique, or a broken promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from compress_core.errors import BrokenModelError, CompressError

Found = TypeVar("Found")


class ConformanceError(AssertionError):
    """A promise that is not kept: where, what broke, and how to mend it."""

    def __init__(self, what: str, *, where: str = "", mend: str) -> None:
        super().__init__(f"{where}: {what}\n  to mend it: {mend}" if where else f"{what}\n  to mend it: {mend}")
        self.what = what
        self.where = where
        self.mend = mend


@dataclass(frozen=True)
class Refusal:
    """Something that a technique does not do, as it told its user."""

    what: str
    mend: str


@dataclass(frozen=True)
class Report:
    """What `check_technique` found; the names are those of the checks."""

    technique: str
    passed: tuple[str, ...]
    refused: dict[str, Refusal]

    def refused_nets(self) -> tuple[str, ...]:
        """The networks that the technique refuses."""
        return tuple(name[5:-1] for name in self.refused if name.startswith("runs["))


def attempt(action: Callable[[], Found]) -> Found | Refusal:
    """Do something that a technique may refuse.

    Raises:
        ConformanceError: the refusal does not say how to mend it, the network that came out does not run,
            or the error is none of `compress_core.errors`.
    """
    try:
        return action()
    except ConformanceError:
        raise
    except BrokenModelError as error:
        raise ConformanceError(
            error.what, mend="run the network once after changing it, and refuse what cannot be handled with ModelError"
        ) from error
    except CompressError as error:
        if not error.mend:
            raise ConformanceError(
                f"the refusal {error.what!r} does not say how to mend it",
                mend=f"raise {type(error).__name__}(…, mend=…)",
            ) from error
        return Refusal(error.what, error.mend)
    except Exception as error:
        raise ConformanceError(
            f"{type(error).__name__}: {error}",
            mend="handle this network, or refuse it with a ModelError that says what the user can do",
        ) from error
