"""Compression from Python, with neither DVC nor Prefect.

    small = compress(model, data, [Prune(amount=0.5, granularity="channel"), Quantize()])
    small.model, small.quality, small.history

A step of its own for each technique, in the order given; `Together([...])` lets several share one training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from compress_core.applying import apply_techniques, check_runs
from compress_core.artifact import save
from compress_core.catalog import catalog
from compress_core.data import SPLITS, Columns, Splits, batches
from compress_core.errors import CompressError, DataError, ModelError, RecipeError, suggest
from compress_core.measure import Counts, Quality, counts, quality, tensor_bytes
from compress_core.order import changes_numbers, check_together
from compress_core.parts import DataSource, Exporter, Task, Technique
from compress_core.recipe import Precision
from compress_core.run import Run, as_teacher
from compress_core.seeding import seeded
from compress_core.stage import TEST_BATCH, check_data, check_device, export_model

PRECISIONS = get_args(Precision)

Columned = Mapping[str, Mapping[str, Tensor]]
"""Split -> column -> tensor, or what torch makes one of."""


@dataclass(frozen=True)
class Together:
    """Techniques that share one step, and so one training."""

    techniques: Sequence[Technique]


@dataclass(frozen=True)
class Done:
    """What a network was after one step; figures on the test split."""

    name: str
    quality: Quality
    counts: Counts
    bytes: int
    """Of its tensors, written as safetensors."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed network, what is known of it, and how it came to be."""

    model: nn.Module
    history: tuple[Done, ...]
    """First the network that came in, then one entry a step."""
    run: Run = field(repr=False)

    @property
    def quality(self) -> Quality:
        """On the test split."""
        return self.history[-1].quality

    @property
    def counts(self) -> Counts:
        """Parameters, those that are not zero, and MACs for one example."""
        return self.history[-1].counts

    @property
    def bytes(self) -> int:
        """Of its tensors, written as safetensors."""
        return self.history[-1].bytes

    def save(self, folder: Path | str, *, factory: str, params: Mapping[str, Any] | None = None) -> None:
        """Save the network as an artifact; `factory(**params)` builds the network that came in.

        Raises:
            ArtifactError: something in the network cannot be represented; nothing is written.
        """
        save(self.model, folder, factory=factory, params=params, provenance={"history": self._steps()})

    def export(self, exporter: Exporter, folder: Path | str) -> Quality:
        """Write the network in a runtime's format, and measure its quality there, on the test split.

        Raises:
            CompressError: the network cannot be exported; nothing is written.
        """
        runtime = export_model(self.model, exporter, Path(folder), self.run, {"history": self._steps()})
        return quality(runtime, batches(self.run.splits.test, TEST_BATCH), self.run.task)

    def _steps(self) -> list[str]:
        return [entry.name for entry in self.history[1:]]


def compress(
    model: nn.Module,
    data: Splits | DataSource | Columned,
    techniques: Iterable[Technique | Together],
    *,
    task: Task | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "float32",
    printer: Callable[[str], None] = lambda text: None,
) -> Result:
    """Apply techniques to a network, one step after the other.

    Args:
        model: stays as it is.
        data: splits, a data source, or a mapping split -> column -> tensor with `train`, `validation` and `test`.
        techniques: what is done, in this order.
        task: how a batch goes in and how the output is judged; classification unless given.
        teacher: who teaches where a technique needs one; the network that came in unless given.
        seed: decides everything random.
        device: where the network trains.
        precision: number format of the training's passes.
        printer: is told how far the work is, line by line.

    Raises:
        CompressError: what is wrong, the step it happened in, and how to mend it.
    """
    steps = _steps(techniques)
    _check_steps(steps)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{model!r} is no network", where="model", mend="give a torch.nn.Module")
    if precision not in PRECISIONS:
        raise RecipeError(f"unknown precision {precision!r}", where="precision", mend=suggest(precision, PRECISIONS))
    check_device(device, precision)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        printer(text)

    run = Run(
        splits=_splits(data, seed),
        task=task or _classification(),
        seed=seed,
        device=device,
        precision=precision,
        teacher=as_teacher(model if teacher is None else teacher).to(device),
        teller=note,
        printer=printer,
    )
    check_data(model, run)
    check_runs(model, run)
    result = deepcopy(model).eval().to(device)
    history = [_done("input", result, run, ())]
    for number, step in enumerate(steps, start=1):
        name = " + ".join(technique.name for technique in step)
        notes.clear()
        try:
            result = apply_techniques(result, step, run)
        except CompressError as error:
            raise error.inside(f"step {number} ({name})") from error.__cause__
        history.append(_done(name, result, run, tuple(notes)))
    return Result(result.cpu(), tuple(history), run)


def _steps(techniques: Iterable[Technique | Together]) -> list[list[Technique]]:
    """The techniques of each step."""
    if not isinstance(techniques, Iterable) or isinstance(techniques, Technique):
        raise RecipeError("techniques come in a list", where="techniques", mend="write [Prune(...), Quantize()]")
    steps = [list(entry.techniques) if isinstance(entry, Together) else [entry] for entry in techniques]
    for number, technique in ((number, entry) for number, step in enumerate(steps, start=1) for entry in step):
        if isinstance(technique, Technique):
            continue
        mend = "write [Prune(...), Quantize()]"
        if isinstance(technique, type):
            mend = f"write {technique.__name__}() with its parameters"
        elif isinstance(technique, Exporter):
            mend = "leave it out, and call `.export(exporter, folder)` of what compress returns"
        raise RecipeError(f"{technique!r} is no technique", where=f"step {number}", mend=mend)
    return steps


def _check_steps(steps: Sequence[Sequence[Technique]]) -> None:
    numbers_from: str | None = None
    for number, step in enumerate(steps, start=1):
        name = f"step {number} ({' + '.join(technique.name for technique in step)})"
        try:
            if not step:
                raise RecipeError("it has no technique", mend="put at least one into Together([...])")
            check_together(step, teacher=True, numbers_from=numbers_from)
        except RecipeError as error:
            raise error.inside(name) from None
        changed = changes_numbers(step, before=numbers_from is not None)
        numbers_from = (numbers_from or name) if changed else None


def _splits(data: Splits | DataSource | Columned, seed: int) -> Splits:
    if isinstance(data, Splits):
        return data
    if isinstance(data, DataSource):
        with seeded(seed):
            return data.splits(seed)
    if not isinstance(data, Mapping) or not all(isinstance(columns, Mapping) for columns in data.values()):
        raise DataError(
            "the data are no mapping of splits to columns",
            where="data",
            mend='give {"train": {"image": tensor, "label": tensor}, "validation": …, "test": …}',
        )
    if missing := [name for name in SPLITS if name not in data]:
        raise DataError(
            f"there is no split {missing[0]!r}",
            where="data",
            mend="give `train`, `validation` and `test`",
        )
    train, validation, test = (_columns(data[name]) for name in SPLITS)
    return Splits(train, validation, test)


def _columns(columns: Mapping[str, Any]) -> Columns:
    try:
        return Columns({name: torch.as_tensor(column) for name, column in columns.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"a column is no tensor: {error}", where="data", mend="give tensors of numbers") from error


def _classification() -> Task:
    kind = catalog().tasks.get("classification")
    if kind is None:
        raise RecipeError("no installed plugin has the task 'classification'", where="task", mend="give `task=`")
    return kind()


def _done(name: str, model: nn.Module, run: Run, notes: tuple[str, ...]) -> Done:
    return Done(
        name=name,
        quality=quality(model, batches(run.splits.test, TEST_BATCH, device=run.device), run.task),
        counts=counts(model, run.example),
        bytes=tensor_bytes(model),
        notes=notes,
    )
