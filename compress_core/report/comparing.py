"""Compares every step of a recipe with its dense network, and says what the figures mean.

All networks are called in one process and in one round (see `timing.py`), so that each ratio is of times that
were taken beside one another. Ratios are against the dense network in the same runtime, against the dense network
in its fastest runtime, and against eager torch, which is a weak opponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from compress_core import lock
from compress_core.data import Batch, load_splits
from compress_core.modes import torch_threads
from compress_core.parts import Task
from compress_core.recipe import Recipe
from compress_core.report import MEASURED, Machine, Report, Row, Times, read_metrics
from compress_core.report.candidates import Candidate, candidates, dense_step, is_idle
from compress_core.report.remarks import remarks
from compress_core.timing import Timing, measure
from compress_core.workspace import Workspace

BATCHES = (1, 64)
"""One example, as a request comes in; and so many that arithmetic rather than the calls decides the time."""
SECONDS = 2.0
"""For one attempt at timing all networks at one batch size."""
ATTEMPTS = 2
TORCH = "torch"


def compare(
    recipe: Recipe, workspace: Workspace, *, seconds: float = SECONDS, batch_sizes: Sequence[int] = BATCHES
) -> Report:
    """Read every step's metrics, time every network, and say what the figures mean.

    Args:
        recipe: what was run.
        workspace: where its artifacts and metrics lie.
        seconds: for one attempt at timing all networks at one batch size.
        batch_sizes: examples in one call; never more than the test split has.

    Raises:
        ArtifactError: a step has left no metrics or no artifact, or one that was altered.
    """
    metrics = {name: read_metrics(workspace.metrics(name)) for name in recipe.steps}
    splits = load_splits(workspace.artifact("data"))
    dense, points, threads = dense_step(recipe).name, recipe.task.proportion, recipe.settings.threads
    with ExitStack() as stack:
        stack.enter_context(torch_threads(threads))
        temporary = Path(stack.enter_context(TemporaryDirectory(prefix="compress-report-")))
        found = candidates(recipe, workspace, metrics, splits, temporary=temporary)
        clock = _Stopwatch(found, dense, recipe.task, threads, seconds)
        latency = [
            clock.times(splits.test.take(torch.arange(size)), size)
            for size in sorted({min(size, len(splits.test)) for size in batch_sizes})
        ]
    dense_metrics = {candidate.name: candidate.metrics for candidate in found}
    rows = {
        candidate.name: row_of(
            candidate,
            bytes_of_opponent=dense_metrics[candidate.opponent].bytes,
            reference_quality=dense_metrics[dense].quality.value,
            points=points,
            latency=[times[candidate.name] for times in latency],
        )
        for candidate in found
    }
    said = {
        candidate.name: remarks(
            rows[candidate.name],
            rows[candidate.opponent],
            rows[dense],
            points=points,
            same_as_input=is_idle(candidate.step, workspace),
        )
        for candidate in found
    }
    finished = {name: row.model_copy(update={"remarks": said[name]}) for name, row in rows.items()}
    return Report(
        reference=dense,
        points=points,
        headline=headline(finished.values(), dense),
        order=tuple(finished),
        steps=finished,
        machine=machine(threads, recipe.settings.device),
        measured=MEASURED,
    )


def row_of(
    candidate: Candidate,
    *,
    bytes_of_opponent: int,
    reference_quality: float,
    points: bool,
    latency: Iterable[Times],
) -> Row:
    """The figures of one network beside those of the dense one."""
    step, metrics = candidate.step, candidate.metrics
    return Row(
        name=step.name,
        kind="model" if step.exporter is None else "export",
        format=TORCH if step.exporter is None else step.exporter.name,
        input=step.input,
        teacher=step.teacher,
        use=dict(step.use),
        opponent=candidate.opponent,
        is_step=candidate.is_step,
        metrics=metrics,
        smaller=bytes_of_opponent / max(1, metrics.bytes),
        difference=(metrics.quality.value - reference_quality) * (100 if points else 1),
        latency=tuple(latency),
    )


def headline(rows: Iterable[Row], dense: str) -> str | None:
    """The row worth naming first: the smallest that keeps the reference's quality, or else the best one."""
    by_name = {row.name: row for row in rows}
    reference = by_name[dense].metrics.quality
    rivals = [row for row in by_name.values() if row.is_step and not row.is_dense]
    if good := [row for row in rivals if row.metrics.quality.keeps(reference)]:
        return min(good, key=lambda row: row.metrics.bytes).name
    order = {row.name: (row.metrics.quality.gain_over(reference), -row.metrics.bytes) for row in rivals}
    return max(order, key=lambda name: order[name]) if order else None


def machine(threads: int, device: str) -> Machine:
    """The machine this runs on."""
    found = lock.machine()
    return Machine(
        processor=found["processor"],
        cores=found["cores"],
        threads=threads,
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        system=f"{found['system']} {found['architecture']}",
        versions={"compress-core": lock.version_of("compress-core"), "python": found["python"], **found["versions"]},
    )


@dataclass(frozen=True)
class _Stopwatch:
    """Times the candidates beside one another."""

    candidates: Sequence[Candidate]
    dense: str
    task: Task
    threads: int
    seconds: float

    def times(self, batch: Batch, size: int) -> dict[str, Times]:
        """Every network's time on one batch."""
        opponents = {candidate.opponent for candidate in self.candidates} | {self.dense}
        with torch.inference_mode():
            calls = {candidate.name: self._call(candidate, batch) for candidate in self.candidates}
            timing = measure(calls, opponents, seconds=self.seconds, attempts=ATTEMPTS)
        best = min(sorted(opponents), key=lambda name: timing.time(name).value)
        return {candidate.name: self._times(timing, candidate, best, size) for candidate in self.candidates}

    def _times(self, timing: Timing, candidate: Candidate, best: str, size: int) -> Times:
        name, opponent = candidate.name, candidate.opponent
        latency = timing.latency(name, opponent, self.dense, batch=size, threads=self.threads)
        return Times(
            batch=size,
            threads=self.threads,
            opponent=opponent,
            best=best,
            milliseconds=latency.milliseconds,
            speedup=latency.speedup,
            speedup_to_best=timing.speedup(name, best),
            speedup_to_eager=latency.speedup_to_eager,
            disturbed=latency.disturbed,
        )

    def _call(self, candidate: Candidate, batch: Batch) -> Callable[[], Any]:
        """A call that ends when the result is there."""
        moved = {name: column.to(candidate.device) for name, column in batch.items()}
        arguments, keywords = self.task.inputs(moved)
        if candidate.device == "cpu":
            return lambda: candidate.call(*arguments, **keywords)

        def call() -> None:
            candidate.call(*arguments, **keywords)
            torch.accelerator.synchronize()

        return call
