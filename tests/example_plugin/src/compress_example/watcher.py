"""A watcher: every figure of a stage as one line of JSON in `scalars.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compress_core import hookimpl
from compress_core.watching import Stage


@hookimpl
def scalar_logged(stage: Stage, name: str, value: float, step: int) -> None:
    """Append a figure that was logged while the network trains."""
    _append(stage, {"name": name, "value": value, "step": step})


@hookimpl
def stage_finished(stage: Stage, metrics: Mapping[str, Any]) -> None:
    """Append the metrics of the finished stage."""
    _append(stage, {"metrics": dict(metrics)})


@hookimpl
def stage_failed(stage: Stage, error: BaseException) -> None:
    """Append what stopped the stage."""
    _append(stage, {"error": str(error)})


def _append(stage: Stage, line: Mapping[str, Any]) -> None:
    with (stage.folder / "scalars.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"stage": stage.name, **line}) + "\n")
