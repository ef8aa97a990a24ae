"""Every hook that a plugin may implement: mark the function with `@compress_core.hookimpl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from compress_core.watching import Stage

if TYPE_CHECKING:
    from torch import nn

    from compress_core.parts import Criterion, DataSource, Exporter, Task, Technique

PROJECT = "compress"
"""The name of the hook project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_techniques() -> Iterable[type[Technique]]:
    """Techniques, found by the names under `use:` in a step."""
    return ()


@hookspec
def register_criteria() -> Iterable[type[Criterion]]:
    """Criteria of what matters in a network, found by the techniques that remove something."""
    return ()


@hookspec
def register_data_sources() -> Iterable[type[DataSource]]:
    """Data sources, found by `data: {source: NAME}`."""
    return ()


@hookspec
def register_tasks() -> Iterable[type[Task]]:
    """Tasks, found by `task: {name: NAME}`."""
    return ()


@hookspec
def register_exporters() -> Iterable[type[Exporter]]:
    """Export formats, found by `use: {export: {format: NAME}}`."""
    return ()


@hookspec
def register_modules() -> Iterable[type[nn.Module]]:
    """Types of modules that a saved model may contain beside those of torch.nn and of its own factory."""
    return ()


@hookspec
def stage_started(stage: Stage) -> None:
    """A step starts; `stage.folder` is where a watcher may write."""


@hookspec
def scalar_logged(stage: Stage, name: str, value: float, step: int) -> None:
    """A figure was logged while the network trains."""


@hookspec
def stage_finished(stage: Stage, model: nn.Module | None, metrics: Mapping[str, Any]) -> None:
    """A step ended well; `model` is None for an export."""


@hookspec
def stage_failed(stage: Stage, error: BaseException) -> None:
    """A step ended with an error."""
