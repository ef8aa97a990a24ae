"""Runs of layers replaced by cheaper blocks, each distilled to what it replaces.

    min over the block's weights of  E | y - block(x) |^2 / E | y |^2

x is what goes into the old layers in the old network and y what they give. The blocks know nothing of one another, so
one pass of the old network teaches all of them, and training one alone gives the same. Adam, with a rate that falls
along a cosine; each block keeps the weights of the epoch with the least error on the validation split.

Source: Romero et al. 2015, FitNets: hints for thin deep nets, sec. 2.2 (stage-wise, the hint as target); Li et al.
2020, Blockwisely supervised neural architecture search with knowledge distillation, sec. 3.2 and eq. 6 (every block on
the teacher's own inputs); Wang, Li, Wang 2018, Progressive blockwise knowledge distillation for neural network
acceleration. Cost: a forward of the old network and a forward and backward of the blocks, per batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from math import cos, inf, pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.data import Batch, batch_count, batches
from compress_core.errors import ModelError, TrainingError, place_of
from compress_core.factory import build_model
from compress_core.modes import evaluating, unfused
from compress_core.run import Run
from compress_factorize.blocks import FEATURES, IMAGES
from compress_factorize.places import Place


@dataclass(frozen=True)
class Call:
    """What went into a place and came out of it."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


@dataclass
class Pupil:
    """A block that learns, with the best weights so far."""

    block: nn.Module
    error: float = inf
    weights: dict[str, Tensor] = field(default_factory=dict)

    def judge(self, error: float) -> None:
        """Keep the weights if the error is the least so far."""
        if error < self.error:
            self.error, self.weights = error, deepcopy(self.block.state_dict())


@contextmanager
def watching(model: nn.Module, places: list[Place]) -> Iterator[dict[Place, list[Call]]]:
    """Note every call of the places while the network runs."""
    calls: dict[Place, list[Call]] = {place: [] for place in places}
    entered: dict[Place, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {place: [] for place in places}
    handles = []
    for place in places:

        def enter(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], place: Place = place
        ) -> None:
            entered[place].append((tuple(map(_copied, arguments)), {key: _copied(v) for key, v in keywords.items()}))

        def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any, place: Place = place) -> None:
            calls[place].append(Call(*entered[place].pop(), _copied(output)))

        handles += [
            model.get_submodule(place.first).register_forward_pre_hook(enter, with_kwargs=True),
            model.get_submodule(place.last).register_forward_hook(leave),
        ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


@torch.no_grad()
def taught(model: nn.Module, places: list[Place], run: Run, batch: Batch) -> dict[Place, list[Call]]:
    """The calls of the places for one batch, in eval mode."""
    with watching(model, places) as calls, evaluating(model), unfused():
        run.forward(model, batch)
    return calls


def built_in(place: Place, calls: list[Call], block: str, width: float) -> tuple[str, dict[str, Any]]:
    """The factory and the parameters of one of our blocks for what a place takes and gives.

    Args:
        place: for the messages.
        calls: some of its calls.
        block: the name of the block.
        width: the share of the outputs' channels that the block has within.

    Raises:
        ModelError: no such block takes the place of this one.
    """
    call = calls[0]
    if len(call.arguments) != 1 or call.keywords or not all(map(_is_real, (*call.arguments, call.output))):
        raise ModelError(
            "it takes or gives more than one tensor",
            where=str(place),
            mend="let `block` name a factory of your own, whose module takes and gives what this one does",
        )
    x, y = call.arguments[0], call.output
    images = x.ndim == y.ndim == 4
    known = IMAGES if images else FEATURES
    if block not in known or (not images and x.shape[:-1] != y.shape[:-1]) or (images and y.shape[2] > x.shape[2]):
        raise ModelError(
            f"there is no block {block!r} from {tuple(x.shape)} to {tuple(y.shape)}",
            where=str(place),
            mend=f"for such shapes there are {', '.join(known)}; or name a factory of your own",
        )
    axis = 1 if images else -1
    params: dict[str, Any] = {"inputs": x.shape[axis], "outputs": y.shape[axis]}
    if block != "separable":
        params["within"] = max(1, round(width * y.shape[axis]))
    if images:
        params["stride"] = -(-x.shape[2] // y.shape[2])
    params["residual"] = x.shape == y.shape
    params["positive"] = all(bool((call.output >= 0).all()) for call in calls)
    return f"compress_factorize.blocks:{known[block].__name__}", params


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1


def build(
    place: Place,
    call: Call,
    factory: str,
    params: Mapping[str, Any],
    run: Run,
    *,
    numbers: torch.dtype | None = None,
) -> nn.Module:
    """A fresh block, on the run's device, that has been tried on what the place takes.

    Args:
        place: for the messages.
        call: one of its calls.
        factory: makes the block.
        params: its arguments.
        run: gives the seed and the device.
        numbers: the type of its weights; as the factory makes them unless given.

    Raises:
        ModelError: it cannot be built, does not run, or gives another shape.
    """
    block = build_model(factory, params, seed=run.seed, where=f"{place}, block").to(run.device, numbers)
    try:
        with torch.no_grad(), evaluating(block):
            found = block(*call.arguments, **call.keywords)
    except Exception as error:
        raise ModelError(
            f"the block of {factory!r} does not take what this one takes: {type(error).__name__}: {error}"
            f"{place_of(error)}",
            where=str(place),
            mend="give it parameters that fit, or replace other layers",
        ) from error
    if not isinstance(found, Tensor) or not isinstance(call.output, Tensor) or found.shape != call.output.shape:
        raise ModelError(
            f"the block of {factory!r} gives {_shape(found)} where this one gives {_shape(call.output)}",
            where=str(place),
            mend="give it parameters that fit, or replace other layers",
        )
    return block


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def distil(
    model: nn.Module, blocks: Mapping[Place, nn.Module], run: Run, *, epochs: int, batch_size: int, rate: float
) -> dict[Place, float]:
    """Train the blocks, in place, to what they replace in `model`, and tell each one's error on validation."""
    places = list(blocks)
    pupils = {place: Pupil(block) for place, block in blocks.items()}
    parameters = [parameter for block in blocks.values() for parameter in block.parameters() if parameter.requires_grad]
    if not parameters:
        return errors_of(model, blocks, run)
    epochs = epochs if run.max_batches is None else 1
    per_epoch = batch_count(len(run.splits.train), batch_size, drop_last=True)
    per_epoch = per_epoch if run.max_batches is None else min(per_epoch, run.max_batches)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + cos(pi * step / (epochs * per_epoch))) / 2
    )
    for epoch in range(1, epochs + 1):
        for batch in _training_batches(run, batch_size, epoch, per_epoch):
            calls = taught(model, places, run, batch)
            optimizer.zero_grad()
            for place, pupil in pupils.items():
                if (loss := _relative_loss(pupil.block.train(), calls[place])).requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        for place, error in errors_of(model, blocks, run).items():
            pupils[place].judge(error)
            run.log(f"substitute/{place}", error, epoch)
        run.progress(f"substitute: epoch {epoch}/{epochs}")
    for place, pupil in pupils.items():
        if not pupil.error < inf:
            raise TrainingError(
                "the outputs of its block are no numbers", where=str(place), mend="lower the learning rate"
            )
        pupil.block.load_state_dict(pupil.weights)
    return {place: pupil.error for place, pupil in pupils.items()}


def _training_batches(run: Run, size: int, epoch: int, most: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch)
    order = torch.randperm(len(run.splits.train), generator=generator)
    found = batches(run.splits.train, size, order=order, drop_last=True, device=run.device)
    for _ in range(most):
        yield next(found)


def _relative_loss(block: nn.Module, calls: list[Call]) -> Tensor:
    """The squared error of a block as a share of the squared outputs."""
    losses = [
        F.mse_loss(block(*call.arguments, **call.keywords), call.output)
        / call.output.square().mean().clamp(min=torch.finfo(call.output.dtype).tiny)
        for call in calls
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def errors_of(model: nn.Module, blocks: Mapping[Place, nn.Module], run: Run) -> dict[Place, float]:
    """The relative error sqrt(sum |y - block(x)|^2 / sum |y|^2) of each block on the validation split."""
    lost, whole = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0.0)
    for batch in run.validation():
        calls = taught(model, list(blocks), run, batch)
        for place, block in blocks.items():
            with evaluating(block):
                for call in calls[place]:
                    found = block(*call.arguments, **call.keywords)
                    lost[place] += float((found - call.output).square().sum())
                    whole[place] += float(call.output.square().sum())
    return {place: sqrt(lost[place] / whole[place]) if whole[place] else sqrt(lost[place]) for place in blocks}
