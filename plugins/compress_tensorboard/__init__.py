"""Writes what a step logs, its parameters, its metrics and its weights for TensorBoard.

Each step has one event file in `runs/NAME`; `tensorboard --logdir runs` shows them side by side: curves under Scalars,
weights under Histograms, parameters with final metrics under HParams, errors under Text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compress_core import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.watching import Stage
    from compress_tensorboard.events import EventFile

_open: dict[Stage, EventFile] = {}
"""The files of the steps that run in this process."""


@hookimpl
def stage_started(stage: Stage) -> None:
    """Open the step's event file."""
    from compress_tensorboard.events import EventFile

    _close(stage)
    _open[stage] = EventFile(stage.folder)


@hookimpl
def scalar_logged(stage: Stage, name: str, value: float, step: int) -> None:
    """Write a point of a curve."""
    if stage in _open:
        _open[stage].scalar(name, value, step)


@hookimpl
def stage_finished(stage: Stage, model: nn.Module | None, metrics: Mapping[str, Any]) -> None:
    """Write the parameters with the final metrics and the distribution of the weights, and close the file."""
    if stage not in _open:
        return
    events = _open[stage]
    try:
        events.parameters(stage.parameters, {f"final/{name}": value for name, value in numbers_in(metrics)})
        if model is not None:
            for name, weight in weights_of(model):
                events.histogram(f"weights/{name}", weight)
    finally:
        _close(stage)


@hookimpl
def stage_failed(stage: Stage, error: BaseException) -> None:
    """Write the error and close the file."""
    if stage not in _open:
        return
    try:
        _open[stage].text("error", f"{type(error).__name__}: {error}")
    finally:
        _close(stage)


def numbers_in(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of nested mappings with their paths, `quality/value`; truth values and texts are left out."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in numbers_in(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of two or more axes: weights, and the integers or codes that stand for them."""
    for name, tensor in model.state_dict().items():
        if tensor.ndim >= 2 and not tensor.is_complex():
            yield name, tensor


def _close(stage: Stage) -> None:
    if (events := _open.pop(stage, None)) is not None:
        events.close()
