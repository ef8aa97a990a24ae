"""Tuning: the optimizer, the learning rate and its schedule, the batch size and the regularizers of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.errors import ModelError
from compress_core.parts import Change, Technique, TrainingPlan, TrainingTechnique

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.run import Run

FINAL = {"linear": 0.0, "cosine": 0.0, "exponential": 0.01}
STEP_SIZE, GAMMA = 1 / 3, 0.1
WITH_MOMENTUM = ("sgd", "rmsprop")
WITH_DECAY = ("sgd", "adamw", "nadam")


class Tune(TrainingTechnique):
    """Train: with this optimizer, learning rate, schedule, batch size and these regularizers.

    Alone it trains a network; beside other techniques it decides how their common training runs. The weights
    are those of the epoch with the best validation quality, unless `keep: last`.
    """

    name = "tune"
    example: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw", "schedule": "cosine", "warmup": 0.1, "epochs": 1}

    epochs: int = Field(default=10, ge=0)
    """Passes over the training examples; 0 leaves it to the other techniques of the step whether it trains."""
    batch_size: int = Field(default=64, ge=1)
    """Examples per update."""
    optimizer: Literal["sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad"] = "adamw"
    """The rule by which gradients move the weights."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The highest rate. By default what suits the optimizer at batches of 64: sgd 0.5 times (1 - momentum), adagrad
    0.01, nadam 0.002, adam, adamw and rmsprop 0.001 (times (1 - momentum)); scaled with the batch size for sgd,
    with its square root for the others."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """The share of the last step that is kept, for sgd (0.9 by default) and rmsprop (0)."""
    nesterov: bool = False
    """Whether sgd looks ahead along its momentum."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled decay: each update shrinks the weights by this share of the learning rate. For adamw (0.01 by
    default) and nadam (0); for sgd it is the same as `l2`. Biases, norms and scales never decay."""
    l1: float = Field(default=0.0, ge=0)
    """Factor of the sum of magnitudes in the loss; it drives weights towards zero."""
    l1_on: Literal["weights", "scales"] = "weights"
    """What `l1` holds for: the weights, or the norm layers' factors, one per channel."""
    l2: float = Field(default=0.0, ge=0)
    """Factor of half the sum of squares of the weights in the loss. It acts through the gradient, which adaptive
    optimizers rescale, so it is not `weight_decay`."""
    schedule: Literal["constant", "linear", "exponential", "cosine", "step"] = "constant"
    """How the learning rate falls with the progress of the training."""
    final: float | None = Field(default=None, ge=0, le=1)
    """The share of the learning rate at the end, for linear (0 by default), cosine (0) and exponential (0.01)."""
    step_size: float | None = Field(default=None, gt=0, lt=1)
    """The share of the training after which `step` multiplies the rate; a third by default."""
    gamma: float | None = Field(default=None, gt=0, lt=1)
    """What `step` multiplies the rate by; 0.1 by default."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """The share of all updates over which the rate grows, in a straight line, before the schedule begins."""
    gradient_clip: float | None = Field(default=None, gt=0)
    """The largest L2 norm of all gradients together; larger ones are scaled down to it."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """The rate of every dropout layer that the network has. Dropout is off at inference."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation quality after which training stops."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights are kept: the one with the best validation quality, or the last."""

    @model_validator(mode="after")
    def _meaningful(self) -> Tune:
        has_momentum = self.optimizer in WITH_MOMENTUM
        complaints = [
            (self.momentum is not None and not has_momentum, f"{self.optimizer} has no `momentum`"),
            (self.nesterov and self.optimizer != "sgd", f"`nesterov` is for sgd, not {self.optimizer}"),
            (self.nesterov and self.momentum == 0, "`nesterov` needs a `momentum` above 0"),
            (
                bool(self.weight_decay) and self.optimizer not in WITH_DECAY,
                f"{self.optimizer} has no decoupled `weight_decay`: use adamw, or `l2` for a term of the loss",
            ),
            (self.l1_on != "weights" and not self.l1, "`l1_on` means nothing without `l1`"),
            (self.final is not None and self.schedule not in FINAL, f"{self.schedule} has no `final`"),
            (self.final == 0 and self.schedule == "exponential", "exponential never gets to 0: give a `final` above"),
            (
                self.schedule != "step" and not (self.step_size is None and self.gamma is None),
                f"`step_size` and `gamma` are for the schedule `step`, not {self.schedule}",
            ),
            (self.patience is not None and self.keep == "last", "`patience` waits for the best epoch: `keep: best`"),
        ]
        for wrong, why in complaints:
            if wrong:
                raise ValueError(why)
        return self

    @property
    def changes(self) -> frozenset[Change]:
        """Nothing by itself but the training."""
        return frozenset({Change.TRAINING})

    @property
    def brings_epochs(self) -> bool:
        """Whether there are epochs."""
        return self.epochs > 0

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Put everything but the dropout into the plan, and say which learning rate was chosen."""
        from compress_tune.optimizers import RULES, default_rate, make_optimizer

        rule = RULES[self.optimizer]
        momentum = (rule.momentum or 0.0) if self.momentum is None else self.momentum
        rate = self.learning_rate or default_rate(self.optimizer, self.batch_size, momentum)
        epochs = self.epochs or plan.epochs
        run.say(
            f"tune: {epochs} epochs of {self.optimizer} at a learning rate of {rate:.3g}, {self.schedule}"
            if epochs
            else "tune: no epochs: nothing changed"
        )
        return replace(
            plan,
            epochs=epochs,
            batch_size=self.batch_size,
            optimizer=partial(
                make_optimizer, name=self.optimizer, rate=rate, momentum=momentum, nesterov=self.nesterov
            ),
            weight_decay=(rule.decay or 0.0) if self.weight_decay is None else self.weight_decay,
            schedule=self._schedule(),
            regularizers=(*plan.regularizers, *self._regularizers()),
            gradient_clip=plan.gradient_clip if self.gradient_clip is None else self.gradient_clip,
            patience=plan.patience if self.patience is None else self.patience,
            keep=self.keep,
        )

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Set the rates of dropout.

        Raises:
            ModelError: the network has no dropout layer, or no scales for `l1_on: scales`.
        """
        if self.l1_on == "scales":
            from compress_tune.regularizers import scales

            if not scales(model):
                raise ModelError("the network has no norm layers", where="l1_on", mend="write `l1_on: weights`")
        if self.dropout is not None:
            from compress_tune.dropout import set_dropout

            layers = set_dropout(model, self.dropout)
            if not layers:
                raise ModelError(
                    "the network has no dropout layer", where="dropout", mend="add nn.Dropout to it, or leave it out"
                )
            run.say(f"tune: dropout {self.dropout:g} in {layers} layers")
        return model

    def _schedule(self) -> Callable[[float], float]:
        from compress_tune import schedules

        final = FINAL.get(self.schedule, 0.0) if self.final is None else self.final
        match self.schedule:
            case "constant":
                chosen: Callable[[float], float] = schedules.constant
            case "linear":
                chosen = partial(schedules.linear, final=final)
            case "exponential":
                chosen = partial(schedules.exponential, final=final)
            case "cosine":
                chosen = partial(schedules.cosine, final=final)
            case "step":
                chosen = partial(schedules.step, size=self.step_size or STEP_SIZE, gamma=self.gamma or GAMMA)
        return schedules.warmed_up(chosen, self.warmup)

    def _regularizers(self) -> list[Callable[[nn.Module], Tensor]]:
        from compress_tune.regularizers import l1_of_scales, l1_of_weights, l2_of_weights

        found: list[Callable[[nn.Module], Tensor]] = []
        if self.l1:
            found.append(partial(l1_of_scales if self.l1_on == "scales" else l1_of_weights, factor=self.l1))
        if self.l2:
            found.append(partial(l2_of_weights, factor=self.l2))
        return found


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Tune]
