"""Runs one step of the recipe: `python -m compress_core.stage NAME`.

A step reads `artifacts/data` and the artifacts of its input and teacher, and leaves `artifacts/NAME`,
`metrics/NAME.json` and `runs/NAME`. An artifact takes its place whole, so that a step that is stopped or fails
leaves nothing half-written, and the artifact that was there before stays.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress_core.applying import apply_techniques, check_runs
from compress_core.artifact import load, origins, same_network, save, trusting
from compress_core.catalog import catalog
from compress_core.data import Splits, batches, load_splits
from compress_core.errors import CompressError, DataError, RecipeError, place_of
from compress_core.factory import build_model
from compress_core.files import (
    MANIFEST,
    digest,
    refuse_foreign,
    replacing,
    to_json,
    write_manifest,
    write_text,
    writing,
)
from compress_core.measure import Curve, Metrics, counts, quality, shipped_bytes
from compress_core.modes import torch_threads
from compress_core.parts import Exporter
from compress_core.recipe import Recipe, Step, read_recipe
from compress_core.run import Run, as_teacher
from compress_core.watching import Stage
from compress_core.workspace import Workspace, ending_with_status

DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")
TEST_BATCH = 256
"""Examples per batch when the quality is measured; it changes nothing but the speed."""


def run_stage(recipe: Recipe, name: str, workspace: Workspace, printer: Callable[[str], None] = print) -> Metrics:
    """Run one step and leave its artifact, metrics and runs in the workspace.

    Raises:
        CompressError: with the recipe's file, the step and the technique at fault.
    """
    step = recipe.step(name)
    stage = Stage(name, _emptied(workspace.runs(name)), flat(step.use))
    watchers = catalog().watchers
    watchers.tell("stage_started", stage=stage)
    try:
        with torch_threads(recipe.settings.threads):
            model, metrics = _StageRunner(recipe, step, workspace, stage, printer).work()
    except BaseException as error:
        watchers.tell("stage_failed", stage=stage, error=error)
        if isinstance(error, CompressError):
            raise error.inside(f"{recipe.path}, pipeline.{name}") from error.__cause__
        raise
    watchers.tell("stage_finished", stage=stage, model=model, metrics=metrics.to_dict())
    write_text(workspace.metrics(name), to_json(metrics.to_dict()))
    return metrics


def make_run(recipe: Recipe, splits: Splits, **fields: Any) -> Run:
    """What the techniques of a step see of the world.

    Raises:
        RecipeError: the recipe's device is not there.
    """
    settings = recipe.settings
    check_device(settings.device, settings.precision)
    return Run(
        splits=splits,
        task=recipe.task,
        seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
        **fields,
    )


def check_device(device: str, precision: str = "float32") -> None:
    """Refuse a device that is not there or cannot compute in a number format.

    Raises:
        RecipeError: with torch's reason.
    """
    if not DEVICE.fullmatch(device):
        raise RecipeError(f"{device!r} is no device", where="device", mend="write cpu, cuda, cuda:1, mps or xpu")
    if (device, precision) == ("cpu", "float16"):
        raise RecipeError("processors do not train in float16", where="precision", mend="write bfloat16 or float32")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{device!r} cannot be used: {reason}", where="device", mend="use the device cpu") from error


def fresh_model(recipe: Recipe, step: Step, run: Run) -> nn.Module:
    """The network with which a chain begins, checked against the data.

    Raises:
        CompressError: it cannot be built, or does not fit the data.
    """
    spec = recipe.model_of(step.name)
    where = "model" if step.model is None else f"pipeline.{step.name}.model"
    model = build_model(spec.factory, spec.params, seed=recipe.seed, where=where)
    check_data(model, run)
    check_runs(model, run)
    return model


def check_data(model: nn.Module, run: Run) -> None:
    """Run two examples through a copy of the network and let the task judge every label.

    Raises:
        DataError: the network does not take the data, or cannot learn the labels.
    """
    try:
        run.task.target(run.splits.train.take(torch.arange(1)))
    except DataError as error:
        raise error.inside("task") from None
    arguments, keywords = run.example
    try:
        with torch.no_grad():
            output = as_teacher(model).to(run.device)(*arguments, **keywords)
    except Exception as error:
        shapes = {name: tuple(column.shape[1:]) for name, column in run.splits.train.columns.items()}
        raise DataError(
            f"the network does not take the data: {type(error).__name__}: {error}{place_of(error)}",
            where="model",
            mend=f"the columns have the shapes {shapes}; give the factory fitting `params`, or the task its columns",
        ) from error
    for split in (run.splits.train, run.splits.validation, run.splits.test):
        run.task.check(output, split)


def export_model(
    model: nn.Module, exporter: Exporter, folder: Path, run: Run, provenance: Mapping[str, Any]
) -> Callable[..., Any]:
    """Write a network in an exporter's format, and open the written files in their runtime once to see that they run.

    The manifest beside the files says what goes in and comes out, and how the data were normalized.

    Raises:
        CompressError: the network cannot be exported; nothing is written.
    """
    refuse_foreign(folder)
    measured: dict[str, Any] = {}
    exporter = exporter.chosen(model, replace(run, recorder=measured.__setitem__))
    with replacing(folder) as temporary:
        about = exporter.export(model, temporary, run.example) or {}
        data = {key: run.splits.about[key] for key in ("normalization", "classes") if key in run.splits.about}
        content = {"exporter": exporter.name, "measured": measured, "data": data, **about}
        kept = {key: value for key, value in content.items() if value}
        write_manifest(temporary, {**kept, "kind": "export", "provenance": dict(provenance)})
    with trusting(origins(model)):
        return exporter.load(folder, torch.get_num_threads())


def save_model(model: nn.Module, folder: Path, recipe: Recipe, step: str, provenance: Mapping[str, Any]) -> None:
    """Save what a step has made of its chain's fresh network.

    Raises:
        ArtifactError: something in the network cannot be represented; nothing is written.
    """
    spec = recipe.model_of(step)
    save(model, folder, factory=spec.factory, params=spec.params, provenance=provenance)


def factories(recipe: Recipe) -> set[str]:
    """The factories that the recipe names, for its networks or within its techniques, and so trusts."""
    steps = recipe.steps.values()
    named = {text for step in steps for part in step.parts for text in part.imports()}
    return {recipe.model.factory, *(step.model.factory for step in steps if step.model), *named}


def load_step(recipe: Recipe, name: str, workspace: Workspace) -> nn.Module:
    """The network that a step has made.

    Raises:
        ArtifactError: it is missing or was altered.
    """
    return load(workspace.artifact(name), trust=factories(recipe))


def _emptied(folder: Path) -> Path:
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined with dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


class _StageRunner:
    """One step at work."""

    def __init__(
        self, recipe: Recipe, step: Step, workspace: Workspace, stage: Stage, printer: Callable[[str], None]
    ) -> None:
        self.recipe, self.step, self.workspace, self.stage, self.printer = recipe, step, workspace, stage, printer
        self.notes: list[str] = []
        self.curves: list[Curve] = []
        self.measured: dict[str, Any] = {}
        splits = load_splits(workspace.artifact("data"))
        teacher = None if step.teacher is None else load_step(recipe, step.teacher, workspace)
        self.run = make_run(
            recipe,
            splits,
            teacher=None if teacher is None else as_teacher(teacher).to(recipe.settings.device),
            logger=self._log,
            teller=self._note,
            printer=printer,
            plotter=self.curves.append,
            recorder=self.measured.__setitem__,
        )
        self.folder = workspace.artifact(step.name)

    def work(self) -> tuple[nn.Module | None, Metrics]:
        """Make the artifact, and measure it as it lies on disk."""
        if self.step.input is None:
            model = fresh_model(self.recipe, self.step, self.run)
        else:
            model = load_step(self.recipe, self.step.input, self.workspace)
        return self._export(model, self.step.exporter) if self.step.exporter else self._apply(model)

    def _apply(self, model: nn.Module) -> tuple[nn.Module, Metrics]:
        result = apply_techniques(model, self.step.techniques, self.run).cpu()
        save_model(result, self.folder, self.recipe, self.step.name, self._provenance())
        if self.step.input is not None and same_network(self.workspace.artifact(self.step.input), self.folder):
            self._note("the step changed nothing: its network is its input's, bit for bit")
        kept = load_step(self.recipe, self.step.name, self.workspace)
        return kept, self._metrics(kept, kept)

    def _export(self, model: nn.Module, exporter: Exporter) -> tuple[None, Metrics]:
        runtime = export_model(model, exporter, self.folder, self.run, self._provenance())
        return None, self._metrics(model, runtime)

    def _metrics(self, model: nn.Module, runtime: Callable[..., Any]) -> Metrics:
        """What is measured on `runtime`, the thing that would be deployed; `model` is where its parts are counted."""
        task, test = self.run.task, self.run.splits.test
        found = quality(runtime, batches(test, TEST_BATCH), task)
        size = shipped_bytes(self.folder)
        example = task.inputs(test.take(torch.arange(1)))
        metrics = Metrics(found, size, counts(model, example), tuple(self.notes), tuple(self.curves))
        self.printer(f"test {found.name} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}], {size:,} bytes")
        return metrics

    def _provenance(self) -> dict[str, Any]:
        """Where the artifact comes from: nothing in it depends on the time, the place or the machine."""
        plugins = [catalog().owner(type(part)) for part in self.step.parts]
        return {
            "step": self.step.name,
            "use": {key: dict(value) for key, value in self.step.use.items()},
            "seed": self.recipe.seed,
            "input": self._hash_of(self.step.input),
            "teacher": self._hash_of(self.step.teacher),
            "plugins": {plugin.name: f"{plugin.distribution} {plugin.version}" for plugin in plugins},
            **({"measured": dict(self.measured)} if self.measured else {}),
        }

    def _hash_of(self, step: str | None) -> str | None:
        return None if step is None else digest(self.workspace.artifact(step) / MANIFEST)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.printer(text)

    def _log(self, name: str, value: float, step: int) -> None:
        catalog().watchers.tell("scalar_logged", stage=self.stage, name=name, value=value, step=step)


def _stop(signum: int, frame: Any) -> None:
    sys.exit(128 + signum)


def main() -> None:
    """Run the step that is named on the command line."""
    signal.signal(signal.SIGTERM, _stop)
    with ending_with_status():
        if len(sys.argv) != 2:
            raise CompressError("one step must be named", mend="python -m compress_core.stage NAME")
        workspace = Workspace.here()
        run_stage(read_recipe(workspace.params), sys.argv[1], workspace, printer=_print)


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
