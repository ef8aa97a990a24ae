"""Layer by layer through a network that calibrates: what each layer reads and gives, rounded and real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from compress_quantize.layers import TRAINING, Training
from compress_quantize.observers import ActivationQuantizer

Forward = Callable[[nn.Module], Any]
"""Runs a network on one calibration batch."""


class _Enough(Exception):
    """Ends a forward when the layer that is watched has been called."""


def real_copy(model: nn.Module) -> nn.Module:
    """A copy whose layers compute with their real weights; its quantizers pass everything on."""
    copy = deepcopy(model).eval()
    kinds: dict[type[nn.Module], type[nn.Module]] = {training: kind for kind, training in TRAINING.items()}
    for module in copy.modules():
        if kind := kinds.get(type(module)):
            module.__class__ = kind
        elif isinstance(module, ActivationQuantizer):
            module.active = False
    return copy


@torch.no_grad()
def order_of_calls(model: nn.Module, forward: Forward) -> Counter[str]:
    """How often each training layer is called, in the order of the first calls."""
    calls: Counter[str] = Counter()
    with _hooks(model, {path: calls for path in _paths(model)}, lambda calls, path, *_: calls.update([path])):
        forward(model)
    return calls


def _paths(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        if isinstance(module, Training):
            yield path


@torch.no_grad()
def inputs_of(model: nn.Module, path: str, forwards: Iterable[Forward], *, calls: int = 1) -> Tensor:
    """What a layer's product reads, behind its own quantizer if it has one, of all batches: (examples, ...)."""
    found: list[Tensor] = []

    def note(found: list[Tensor], _: str, layer: nn.Module, read: Tensor, given: Tensor) -> None:
        found.append(read.detach().clone())

    _run_until(model, path, forwards, found=found, note=note, calls=calls)
    layer = model.get_submodule(path)
    quantizer = layer._modules.get("input_quantizer") if isinstance(layer, Training) else None
    rows = [entry if quantizer is None else quantizer(entry) for entry in found]
    return torch.cat([row.flatten(0, -2) if isinstance(layer, nn.Linear) else _batched(layer, row) for row in rows])


def _batched(layer: nn.Module, row: Tensor) -> Tensor:
    return row if row.ndim == layer.get_parameter("weight").ndim else row.unsqueeze(0)


@torch.no_grad()
def mean_outputs(model: nn.Module, path: str, forwards: Iterable[Forward], *, calls: int = 1) -> Tensor:
    """The mean (out,) of each output channel of a layer over all batches."""
    total: list[tuple[Tensor, int]] = []

    def note(total: list[tuple[Tensor, int]], _: str, layer: nn.Module, read: Tensor, given: Tensor) -> None:
        axis = channel_axis(layer, given)
        rows = given.detach().double().movedim(axis, 0).flatten(1)
        total.append((rows.sum(1), rows.shape[1]))

    _run_until(model, path, forwards, found=total, note=note, calls=calls)
    return torch.stack([part for part, _ in total]).sum(0) / sum(count for _, count in total)


def channel_axis(layer: nn.Module, given: Tensor) -> int:
    """The axis of a layer's output channels."""
    return -1 if isinstance(layer, nn.Linear) else given.ndim - layer.get_parameter("weight").ndim + 1


def _run_until(
    model: nn.Module,
    path: str,
    forwards: Iterable[Forward],
    *,
    found: list[Any],
    note: Callable[[Any, str, nn.Module, Tensor, Tensor], None],
    calls: int,
) -> None:
    seen = 0

    def stop(found: list[Any], path: str, layer: nn.Module, read: Tensor, given: Tensor) -> None:
        nonlocal seen
        note(found, path, layer, read, given)
        seen += 1
        if seen == calls:
            raise _Enough

    with _hooks(model, {path: found}, stop):
        for forward in forwards:
            seen = 0
            try:
                forward(model)
            except _Enough:
                continue


@contextmanager
def _hooks(
    model: nn.Module, found: dict[str, Any], note: Callable[[Any, str, nn.Module, Any, Any], None]
) -> Iterator[None]:
    handles = []
    for path, goes_to in found.items():

        def watch(layer: nn.Module, inputs: Any, given: Any, path: str = path, goes_to: Any = goes_to) -> None:
            note(goes_to, path, layer, inputs[0], given)

        handles.append(model.get_submodule(path).register_forward_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
