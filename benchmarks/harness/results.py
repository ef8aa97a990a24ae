"""`benchmarks/results.json`: the figures of the last run of every benchmark, in each mode.

A list of figures, sorted by benchmark and mode, each with all that it rests on. A new run replaces the figures of
its benchmark and mode and leaves the rest, also while another benchmark runs beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.harness.figures import Figure
from compress_core.errors import ArtifactError
from compress_core.files import to_json, write_text

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
DIGITS = 6
"""Significant digits that are kept."""

Entry = dict[str, Any]


def entries(
    benchmark: str, mode: str, figures: Iterable[Figure], *, seconds: float, versions: Mapping[str, str], machine: str
) -> list[Entry]:
    """The figures of one run as they stand in the file.

    Raises:
        ValueError: two figures have one name.
    """
    found: list[Entry] = []
    for figure in figures:
        if any(entry["name"] == figure.name for entry in found):
            raise ValueError(f"{benchmark} gives two figures with the name {figure.name!r}")
        numbers = {key: _rounded(value) for key, value in figure.to_dict().items()}
        about = {"benchmark": benchmark, "mode": mode, "seconds": round(seconds)}
        found.append({**about, **numbers, "versions": dict(versions), "machine_kind": machine})
    return found


def read(path: Path = RESULTS) -> list[Entry]:
    """The figures of the file; none if there is no file.

    Raises:
        ArtifactError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        found: list[Entry] = json.loads(path.read_text(encoding="utf-8"))
        return sorted(found, key=_place)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"it is damaged: {error}", where=path.name, mend="take it from git again") from error


def merge(new: list[Entry], path: Path = RESULTS) -> list[Entry]:
    """Put the figures of one run in the place of those of its last, write the file, and return all of it."""
    lock = path.parent.parent / ".compress" / "benchmarks.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        replaced = {_place(entry) for entry in new}
        found = sorted([*(entry for entry in read(path) if _place(entry) not in replaced), *new], key=_place)
        write_text(path, to_json(found))
    return found


def _place(entry: Entry) -> tuple[str, str]:
    return entry["benchmark"], entry["mode"]


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
