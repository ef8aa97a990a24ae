"""One batch through every step of a recipe: finds in seconds what would fail in an hour.

Nothing is written into the workspace, but for the remembered hashes in `.compress`. Each training is one update on
one batch, each measurement one batch. A step that fails leaves those behind it untried, and the others go on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from compress_core.applying import apply_techniques
from compress_core.data import Splits, load_splits, make_splits
from compress_core.errors import ArtifactError, CompressError
from compress_core.measure import forward_with
from compress_core.modes import torch_threads
from compress_core.planning import data_are_current
from compress_core.recipe import Recipe, Step
from compress_core.run import Run, as_teacher
from compress_core.stage import export_model, fresh_model, make_run, save_model
from compress_core.workspace import Workspace


@dataclass(frozen=True)
class Trial:
    """How one step went."""

    step: str
    seconds: float
    notes: tuple[str, ...] = ()
    error: CompressError | None = None
    waits_for: str | None = None
    """The failed step because of which it was not tried."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "step": self.step,
            "works": self.error is None and self.waits_for is None,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "error": str(self.error) if self.error else None,
            "waits_for": self.waits_for,
        }


def try_recipe(recipe: Recipe, workspace: Workspace) -> Iterator[Trial]:
    """Try the steps one after the other.

    Raises:
        CompressError: there are no data.
    """
    with torch_threads(recipe.settings.threads), tempfile.TemporaryDirectory(prefix="compress-try-") as folder:
        trial = _Trial(recipe, _splits(recipe, workspace), Path(folder))
        for step in recipe.steps.values():
            yield trial.run(step)


def _splits(recipe: Recipe, workspace: Workspace) -> Splits:
    """The examples of the workspace, or those of the data source if they are older than that."""
    if data_are_current(recipe, workspace):
        with suppress(ArtifactError):
            return load_splits(workspace.artifact("data"))
    return make_splits(recipe)


class _Trial:
    def __init__(self, recipe: Recipe, splits: Splits, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        try:
            self.base = make_run(recipe, splits, max_batches=1)
        except CompressError as error:
            raise error.inside(str(recipe.path)) from error.__cause__
        self.models: dict[str, nn.Module] = {}
        self.failed: dict[str, str] = {}
        """Step -> the step at fault."""

    def run(self, step: Step) -> Trial:
        start = perf_counter()
        if blame := next((self.failed[name] for name in step.needs if name in self.failed), None):
            self.failed[step.name] = blame
            return Trial(step.name, 0.0, waits_for=blame)
        notes: list[str] = []
        teacher = None if step.teacher is None else as_teacher(self.models[step.teacher]).to(self.base.device)
        try:
            self._perform(step, replace(self.base, teacher=teacher, teller=notes.append))
        except CompressError as error:
            self.failed[step.name] = step.name
            placed = error.inside(f"{self.recipe.path}, pipeline.{step.name}")
            return Trial(step.name, perf_counter() - start, tuple(notes), placed)
        return Trial(step.name, perf_counter() - start, tuple(notes))

    def _perform(self, step: Step, run: Run) -> None:
        model = fresh_model(self.recipe, step, run) if step.input is None else self.models[step.input]
        if step.exporter is not None:
            runtime = export_model(model, step.exporter, self.folder / step.name, run, {})
            forward_with(runtime, run.task, next(iter(run.validation())))
            return
        self.models[step.name] = apply_techniques(model, step.techniques, run).cpu()
        save_model(self.models[step.name], self.folder / step.name, self.recipe, step.name, {})
