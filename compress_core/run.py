"""All that a technique sees of the world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.data import Batch, Splits, batches
from compress_core.errors import ModelError, suggest
from compress_core.measure import Curve, Quality, forward_with, quality
from compress_core.modes import evaluating
from compress_core.parts import Task, TrainingTechnique
from compress_core.training import train

Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Features:
    """What went into and came out of one module, batch by batch."""

    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Run:
    """The data, the task, the teacher and the means to train and evaluate, for one step.

    A technique gets it in every method. It never touches a file and never names another technique.
    """

    splits: Splits
    task: Task
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    teacher: nn.Module | None = None
    """In eval mode, without gradients; the step's own copy."""
    logger: Callable[[str, float, int], None] = lambda name, value, step: None
    teller: Callable[[str], None] = lambda text: None
    printer: Callable[[str], None] = lambda text: None
    plotter: Callable[[Curve], None] = lambda curve: None
    recorder: Callable[[str, Any], None] = lambda name, value: None
    max_batches: int | None = None
    """Trains and evaluates on that many batches only, to try a recipe out."""

    @property
    def example(self) -> Example:
        """The forward's arguments for two training examples, on the run's device."""
        batch = self.splits.train.take(torch.arange(min(2, len(self.splits.train))))
        return self.task.inputs({name: column.to(self.device) for name, column in batch.items()})

    def calibration(self, size: int = 64, limit: int = 8) -> Iterator[Batch]:
        """The first `limit` batches of the training split, in a seeded order."""
        order = torch.randperm(len(self.splits.train), generator=torch.Generator().manual_seed(self.seed))
        most = limit if self.max_batches is None else min(limit, self.max_batches)
        return islice(batches(self.splits.train, size, order=order, device=self.device), most)

    def validation(self, size: int = 256) -> Iterator[Batch]:
        """The validation split in order."""
        return islice(batches(self.splits.validation, size, device=self.device), self.max_batches)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The network's output for a batch."""
        return forward_with(model, self.task, batch)

    def train(self, model: nn.Module, techniques: Sequence[TrainingTechnique]) -> nn.Module:
        """Train a network with the techniques together; the result is on the best checkpoint.

        One of them may conduct: it then decides how often, and on what, the others train.
        """
        leader = next((technique for technique in techniques if technique.conducts), None)
        if leader is None:
            return train(model, techniques, self)
        others = [technique for technique in techniques if technique is not leader]
        epochs = 0

        def once(network: nn.Module, stand_in: TrainingTechnique | None) -> nn.Module:
            nonlocal epochs
            before = epochs

            def log(name: str, value: float, step: int) -> None:
                nonlocal epochs
                epochs = max(epochs, before + step)
                self.logger(name, value, before + step)

            return train(network, [*others, *([stand_in] if stand_in else [])], replace(self, logger=log))

        return leader.conduct(model, once, self).eval()

    def evaluate(self, model: nn.Module) -> Quality:
        """The quality on the validation split. Restores each module's own mode."""
        return quality(model, self.validation(), self.task)

    @torch.no_grad()
    def features(
        self, model: nn.Module, names: Iterable[str], data: Iterable[Batch] | None = None
    ) -> dict[str, Features]:
        """Inputs and outputs of named modules in eval mode, on the calibration batches unless others are given.

        Raises:
            ModelError: the network has no such module.
        """
        found = {name: Features() for name in names}
        modules = {name: named_module(model, name) for name in found}
        handles = [modules[name].register_forward_hook(_recorder(features)) for name, features in found.items()]
        try:
            with evaluating(model):
                for batch in data if data is not None else self.calibration():
                    self.forward(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def log(self, name: str, value: float, step: int) -> None:
        """Log a figure: TensorBoard and every other watcher get it."""
        self.logger(name, float(value), step)

    def say(self, text: str) -> None:
        """Note for the report: what was chosen, what was left out and why, that nothing changed."""
        self.teller(text)

    def plot(self, name: str, points: Iterable[tuple[float, float]], *, x: str, y: str) -> None:
        """Show the report what was measured along a parameter: a curve by its name, with labels for the axes."""
        self.plotter(Curve(name, x, y, tuple((float(one), float(other)) for one, other in points)))

    def record(self, name: str, value: Any) -> None:
        """Record in the artifact's manifest a choice that rests on a measurement of this machine, with it.

        Only where a choice cannot follow from the recipe alone, such as a target latency.
        """
        self.recorder(name, value)

    def progress(self, text: str) -> None:
        """Tell the person who watches how far the work is."""
        self.printer(text)


def named_module(model: nn.Module, name: str) -> nn.Module:
    """A module by its path.

    Raises:
        ModelError: there is none.
    """
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in known:
        raise ModelError(f"the network has no module {name!r}", mend=suggest(name, [path for path in known if path]))
    return known[name]


def as_teacher(model: nn.Module) -> nn.Module:
    """A copy that teaches: in eval mode, without gradients."""
    return deepcopy(model).eval().requires_grad_(False)


def _recorder(features: Features) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        features.inputs.append(tuple(_kept(value) for value in inputs))
        features.outputs.append(_kept(output))

    return record


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
