"""Distillation: a network learns from a larger one; several networks become one teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.errors import ModelError
from compress_core.parts import Change, Technique, TrainingPlan, TrainingTechnique

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.data import Batch
    from compress_core.run import Run

HINT_WEIGHT = 1.0


class Distill(TrainingTechnique):
    """Learn from the teacher's probabilities as well as from the labels.

    The loss is (1 - w) * task + w * T^2 * KL(softmax(teacher / T) || softmax(student / T)), and the mean squared
    error of hints beside it. The student is the step's input, or a fresh smaller network that the step names
    after `model:`. The task's share is multiplied with what other techniques leave of it.
    """

    name = "distill"
    example: ClassVar[Mapping[str, Any]] = {"temperature": 4.0, "weight": 0.7}
    needs_teacher = True
    needs_epochs = True

    temperature: float = Field(default=4.0, gt=0)
    """T, by which all logits are divided. The higher, the more the teacher's ranking of the wrong classes counts."""
    weight: float = Field(default=0.7, ge=0, le=1)
    """w, the share of the loss that is the teacher's; the labels have the rest. With 1 the labels play no part."""
    hints: Mapping[str, str] = Field(default_factory=dict)
    """Pairs of layers by their paths, `{student's: teacher's}`: the first learns to give what the second gives, through
    a linear map of its channels that is learned too and then thrown away."""
    hint_weight: float | None = Field(default=None, gt=0)
    """Factor of the hints' mean squared error in the loss; 1 by default."""

    @model_validator(mode="after")
    def _meaningful(self) -> Distill:
        if self.weight == 0 and not self.hints:
            raise ValueError("with `weight: 0` and no `hints` the teacher plays no part")
        if self.hint_weight is not None and not self.hints:
            raise ValueError("`hint_weight` means nothing without `hints`")
        return self

    @property
    def changes(self) -> frozenset[Change]:
        """Nothing by itself but the training."""
        return frozenset({Change.TRAINING})

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Leave the labels their share of the loss."""
        return replace(plan, task_weight=plan.task_weight * (1.0 - self.weight))

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """Compare student and teacher on two examples, and make what the hints need.

        Raises:
            ModelError: there is no teacher, their logits differ in shape or are no classes', or a pair of hints does
                not fit.
        """
        teacher = _teacher_of(run, self.name)
        batch = next(iter(run.calibration(size=2, limit=1)))
        try:
            student_features = run.features(model, ["", *self.hints], [batch])
            teacher_features = run.features(teacher, ["", *self.hints.values()], [batch])
        except ModelError as error:
            raise error.inside("hints") from None
        if self.weight:
            _check_logits(*(run.task.logits(seen[""].outputs[0]) for seen in (student_features, teacher_features)))
            _check_classes(run, batch, "distill by `hints` with `weight: 0`")
        also = f", {len(self.hints)} hints" if self.hints else ""
        run.say(
            f"distill: {self.weight:g} of the loss is the teacher's, at a temperature of {self.temperature:g}{also}"
        )
        if not self.hints:
            return None
        from compress_distill.hints import Hints

        state = Hints(model, teacher, self.hints)
        try:
            state.add_regressors(
                {name: features.outputs[0] for name, features in student_features.items()},
                {name: features.outputs[0] for name, features in teacher_features.items()},
            )
        except ModelError as error:
            state.remove()
            raise error.inside("hints") from None
        return state

    def loss(self, batch: Batch, output: Any, model: nn.Module, state: nn.Module | None, run: Run) -> Tensor | None:
        """The teacher's term."""
        import torch

        from compress_distill.hints import Hints
        from compress_distill.soft_targets import soft_target_loss

        with torch.no_grad():
            taught = run.forward(_teacher_of(run, self.name), batch)
        logits = run.task.logits(output)
        term = logits.new_zeros(())
        if self.weight:
            term = self.weight * soft_target_loss(logits, run.task.logits(taught), self.temperature)
        if isinstance(state, Hints):
            term = term + (HINT_WEIGHT if self.hint_weight is None else self.hint_weight) * state.loss()
        return term

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Take the hooks of the hints away."""
        self.abandon(model, state, run)
        return model

    def abandon(self, model: nn.Module, state: nn.Module | None, run: Run) -> None:
        """Take the hooks of the hints away."""
        from compress_distill.hints import Hints

        if isinstance(state, Hints):
            state.remove()


class Ensemble(Technique):
    """Join the step's input and its teacher into a committee whose answer is the mean of its members'.

    A committee is one network and one artifact: it can teach, be measured and be exported. Joining one adds to its
    members, which all keep the same weight.
    """

    name = "ensemble"
    example: ClassVar[Mapping[str, Any]] = {"average": "probabilities"}
    needs_teacher = True
    keeps_teacher = True

    average: Literal["probabilities", "outputs"] = "probabilities"
    """What is averaged: the probabilities of the classes, whose logarithm is given, or the outputs as they are, which
    suits a regression."""

    @property
    def changes(self) -> frozenset[Change]:
        """The architecture: another root, with one more network in it."""
        return frozenset({Change.ARCHITECTURE})

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Return the committee.

        Raises:
            ModelError: there is no teacher, or the two networks' outputs cannot be averaged like this.
        """
        from copy import deepcopy

        from compress_distill.committee import Committee, members_of, part_of

        teacher = deepcopy(_teacher_of(run, self.name))
        for parameter in teacher.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        batch = next(iter(run.calibration(size=2, limit=1)))
        outputs = [run.features(network, [""], [batch])[""].outputs[0] for network in (model, teacher)]
        logits = [run.task.logits(output) for output in outputs]
        _check_logits(*logits, several=self.average == "probabilities")
        if self.average == "probabilities":
            _check_classes(run, batch, "write `average: outputs`")
        parts = [part_of(output, found) for output, found in zip(outputs, logits, strict=True)]
        if parts[0] != parts[1]:
            raise ModelError(f"the logits lie in different parts of the outputs: {parts[0]!r} and {parts[1]!r}")
        members = [*members_of(model), *members_of(teacher)]
        run.say(f"ensemble: {len(members)} members, the mean of their {self.average}")
        return Committee(members, parts[0], self.average).eval()


def _teacher_of(run: Run, name: str) -> nn.Module:
    if run.teacher is None:
        raise ModelError(f"{name!r} needs a teacher", mend="name a step after `teacher:`, or pass `teacher=`")
    return run.teacher


def _check_logits(student: Tensor, teacher: Tensor, *, several: bool = True) -> None:
    """Refuse two networks that do not tell the same classes apart."""
    if student.shape != teacher.shape:
        raise ModelError(
            f"the network gives logits of shape {tuple(student.shape[1:])}, its teacher {tuple(teacher.shape[1:])}",
            mend="take a teacher for the same classes",
        )
    if several and (student.ndim < 2 or student.shape[-1] < 2):
        raise ModelError(
            f"the network gives {tuple(student.shape)}: with less than two classes there are no probabilities",
            mend="distill by `hints` with `weight: 0`, or average the outputs themselves",
        )


def _check_classes(run: Run, batch: Batch, mend: str) -> None:
    """Refuse a task that learns real numbers, whose outputs would lose their size as probabilities."""
    target = run.task.target(batch)
    if target.is_floating_point():
        raise ModelError(
            f"the targets of {run.task.name!r} are real numbers, not classes: its outputs are no probabilities",
            mend=mend,
        )


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Distill, Ensemble]


@hookimpl
def register_modules() -> list[type[nn.Module]]:
    """The modules that a saved network may contain."""
    from compress_distill.committee import Committee

    return [Committee]
