"""Where things lie in a workspace, and how our commands end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compress_core.errors import EXIT_STATUS, CompressError

PARAMS = "params.yaml"
LOCK = "step.lock.yaml"
INTERRUPTED = 130
"""What a process ends with when its user stops it."""


@dataclass(frozen=True)
class Workspace:
    """A folder with a recipe, its artifacts, metrics, runs and report."""

    root: Path

    @classmethod
    def here(cls) -> Workspace:
        """The working directory."""
        return cls(Path())

    @property
    def params(self) -> Path:
        """The recipe."""
        return self.root / PARAMS

    @property
    def lock(self) -> Path:
        """The content hashes of the code and data that each step uses."""
        return self.root / LOCK

    def artifact(self, step: str) -> Path:
        """The folder of a step's model or exported file."""
        return self.root / "artifacts" / step

    def metrics(self, step: str) -> Path:
        """The file of a step's metrics."""
        return self.root / "metrics" / f"{step}.json"

    def runs(self, step: str) -> Path:
        """The folder in which watchers write."""
        return self.root / "runs" / step

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.root / "report"


@contextmanager
def ending_with_status() -> Iterator[None]:
    """Print a `CompressError` without a traceback and end the process with status 2; when interrupted, with 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except CompressError as error:
        say_error(error)
        sys.exit(EXIT_STATUS)


def say_error(error: CompressError) -> None:
    """Print an error for a person."""
    print(f"error: {error}", file=sys.stderr)
