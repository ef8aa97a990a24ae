"""What is measured of blocks on calibration batches; `block_criteria.py` has the equations and their sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.modes import evaluating

if TYPE_CHECKING:
    from compress_core.run import Run

    Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def turned(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos(x, y) at each position; channels are axis 1 of images (examples, channels, H, W), else the last axis."""
    return 1 - F.cosine_similarity(x.double(), y.double(), dim=1 if x.ndim == 4 else -1)


@torch.no_grad()
def influences(model: nn.Module, paths: Sequence[str], run: Run) -> Tensor:
    """The mean of `turned` of each module over the calibration batches, (modules,)."""
    totals, counts = torch.zeros(len(paths), dtype=torch.float64), [0] * len(paths)

    def watch(index: int) -> Hook:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            values = turned(arguments[0], output)
            totals[index] += values.sum().cpu()
            counts[index] += values.numel()

        return hook

    with _hooked(model, {path: watch(index) for index, path in enumerate(paths)}), evaluating(model):
        for batch in run.calibration():
            run.forward(model, batch)
    return totals / torch.tensor(counts)


@torch.no_grad()
def losses_without(model: nn.Module, without: Mapping[str, Callable[[Tensor], Tensor]], run: Run) -> Tensor:
    """How much the mean loss on the calibration batches rises without each module, (modules,)."""
    batches = list(run.calibration())

    def loss() -> float:
        return sum(float(run.task.loss(run.forward(model, batch), batch)) for batch in batches) / len(batches)

    with evaluating(model):
        whole = loss()
        risen = []
        for path, remains in without.items():
            with _hooked(model, {path: _aside(remains)}):
                risen.append(loss() - whole)
    return torch.tensor(risen, dtype=torch.float64)


def _aside(remains: Callable[[Tensor], Tensor]) -> Hook:
    return lambda module, arguments, output: remains(arguments[0])


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    handles = [model.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
