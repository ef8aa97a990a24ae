"""The networks that a report compares: every step's, opened, and the dense one in each of their formats.

The opponent of an exported file is the dense network exported by the same exporter; where the recipe has no such
step, it is exported here once, into a temporary folder, and measured like a step. The opponent of a network in
torch is the dense network in eager torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compress_core.artifact import same_network, trusting
from compress_core.data import Splits, batches
from compress_core.files import read_manifest
from compress_core.measure import quality, shipped_bytes
from compress_core.recipe import Recipe, Step
from compress_core.report import Metrics, QualityFigures
from compress_core.run import Run
from compress_core.stage import TEST_BATCH, export_model, factories, load_step
from compress_core.workspace import Workspace


@dataclass(frozen=True)
class Candidate:
    """A network that can be called."""

    step: Step
    """The step; for a dense network that was exported here, what an export step of it would be."""
    call: Callable[..., Any]
    """A network in torch, or an exported one in its runtime."""
    metrics: Metrics
    """What was measured when the step ran."""
    opponent: str
    """The dense network in the same format; its own name if it is that."""
    is_step: bool = True
    """Whether it is a step of the recipe."""

    @property
    def name(self) -> str:
        """The step's name, or `REFERENCE as FORMAT`."""
        return self.step.name

    @property
    def device(self) -> str:
        """Where its inputs must lie."""
        parameter = next(self.call.parameters(), None) if isinstance(self.call, nn.Module) else None
        return "cpu" if parameter is None else str(parameter.device)


def dense_step(recipe: Recipe) -> Step:
    """The network that everything is compared with; the one that was exported, if the reference is an export."""
    step = recipe.reference
    return step if step.exporter is None or step.input is None else recipe.steps[step.input]


def opponent_of(step: Step, recipe: Recipe) -> str:
    """The name of the dense network in a step's format: a step of the recipe, or one that is to be made."""
    dense = dense_step(recipe)
    if step.exporter is None:
        return dense.name
    for other in recipe.steps.values():
        if other.exporter == step.exporter and other.input == dense.name:
            return other.name
    own = step.exporter.model_dump(exclude_defaults=True)
    parameters = f" ({', '.join(f'{name}: {value}' for name, value in own.items())})" if own else ""
    return f"{dense.name} as {step.exporter.name}{parameters}"


def candidates(
    recipe: Recipe, workspace: Workspace, metrics: Mapping[str, Metrics], splits: Splits, *, temporary: Path
) -> list[Candidate]:
    """Every step, and right after the dense one each export of it that the recipe lacks.

    Args:
        recipe: what was run.
        workspace: where its artifacts lie.
        metrics: those of every step.
        splits: the examples.
        temporary: a folder for the exports that are made here; it must last as long as the candidates.

    Raises:
        ArtifactError: a step has left no artifact, or one that was altered.
    """
    found: list[Candidate] = []
    for step in recipe.steps.values():
        found.append(Candidate(step, _opened(step, recipe, workspace), metrics[step.name], opponent_of(step, recipe)))
    place = next(index for index, candidate in enumerate(found) if candidate.step == dense_step(recipe))
    missing = {candidate.opponent: candidate.step for candidate in found if candidate.opponent not in recipe.steps}
    made = [
        _exported(found[place], replace(step, name=name), recipe, splits, folder=temporary / str(index))
        for index, (name, step) in enumerate(missing.items())
    ]
    return [*found[: place + 1], *made, *found[place + 1 :]]


def is_idle(step: Step, workspace: Workspace) -> bool:
    """Whether a step has left every tensor and every module of its input as it was."""
    if step.exporter is not None or step.input is None:
        return False
    return same_network(workspace.artifact(step.input), workspace.artifact(step.name))


def _opened(step: Step, recipe: Recipe, workspace: Workspace) -> Callable[..., Any]:
    if step.exporter is not None:
        folder = workspace.artifact(step.name)
        read_manifest(folder, kind="export")
        with trusting(factories(recipe)):
            return step.exporter.load(folder, recipe.settings.threads)
    return load_step(recipe, step.name, workspace).to(recipe.settings.device)


def _exported(dense: Candidate, like: Step, recipe: Recipe, splits: Splits, *, folder: Path) -> Candidate:
    """The dense network exported as `like` was, with bytes and quality measured."""
    step = replace(like, input=dense.name, teacher=None)
    assert step.exporter is not None and isinstance(dense.call, nn.Module)
    model = dense.call.cpu()
    call = export_model(model, step.exporter, folder, Run(splits, recipe.task, recipe.seed), provenance={})
    model.to(recipe.settings.device)
    found = quality(call, batches(splits.test, TEST_BATCH), recipe.task)
    figures = {
        "quality": QualityFigures.model_validate(found.to_dict()),
        "bytes": shipped_bytes(folder),
        "notes": (),
    }
    return Candidate(step, call, dense.metrics.model_copy(update=figures), step.name, is_step=False)
