"""The one training loop.

Any number of training techniques share it: each may change the plan, the network, the loss, the gradients
and the weights, in the order of `order.py`. The batches come straight from the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from compress_core.data import Batch, batch_count, batches
from compress_core.errors import TrainingError
from compress_core.masks import HeldZeros, masked_tensors
from compress_core.measure import Quality
from compress_core.order import FINISHING, ordered
from compress_core.parts import TrainingTechnique
from compress_core.plan import TrainingPlan
from compress_core.precision import Precision

if TYPE_CHECKING:
    from compress_core.run import Run


def train(model: nn.Module, techniques: Sequence[TrainingTechnique], run: Run) -> nn.Module:
    """Train `model` in place with the techniques together and return what their `finish` makes of it.

    Raises:
        TrainingError: nothing can train, a technique breaks the rules, or the loss is no number any more.
    """
    torch.manual_seed(run.seed)
    techniques = ordered_training(techniques)
    plan = TrainingPlan()
    for technique in techniques:
        plan = technique.plan(plan, run)
    if run.max_batches is not None and plan.epochs:
        plan = replace(plan, epochs=1, select_from=0.0)
    for technique in techniques:
        model = technique.prepare(model, run)
    model.to(run.device)
    held = HeldZeros(model, masked_tensors(model))
    states: dict[str, nn.Module | None] = {}
    try:
        for technique in techniques:
            state = technique.begin(model, run)
            states[technique.name] = state if state is None else state.to(run.device)
        loop = _Loop(model, techniques, states, plan, run, held)
        if plan.epochs:
            loop.run_epochs()
        else:
            loop.after_step(1.0)
        for technique in ordered_training(techniques, finishing=True):
            model = technique.finish(model, states[technique.name], run)
    except BaseException:
        for technique in techniques:
            if technique.name in states:
                technique.abandon(model, states[technique.name], run)
        raise
    return model.eval()


def ordered_training(techniques: Sequence[TrainingTechnique], *, finishing: bool = False) -> list[TrainingTechnique]:
    """The training techniques in the order in which they work, or finish."""
    found = ordered(techniques, FINISHING) if finishing else ordered(techniques)
    return [technique for technique in found if isinstance(technique, TrainingTechnique)]


def parameter_groups(model: nn.Module, states: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, norms and scales (tensors of fewer than two dimensions) and states do not."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    extra = [parameter for parameter in states.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in own if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in own if parameter.ndim < 2] + extra, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass
class _Best:
    quality: Quality | None = None
    weights: Any = None
    epochs_since: int = 0


@dataclass(frozen=True)
class _Engine:
    """What moves the weights."""

    precision: Precision
    optimizer: Optimizer
    scheduler: LambdaLR


@dataclass
class _Loop:
    """One training: everything that its epochs share."""

    model: nn.Module
    techniques: list[TrainingTechnique]
    mine: dict[str, nn.Module | None]
    """The state of each technique, by its name."""
    plan: TrainingPlan
    run: Run
    held: HeldZeros
    """What earlier steps have removed; zeros that the techniques of this one make are theirs to hold."""
    step: int = 0
    best: _Best = field(default_factory=_Best)

    def __post_init__(self) -> None:
        self.states = nn.ModuleList(state for state in self.mine.values() if state is not None)
        _refuse_stolen_parameters(self.model, self.states)
        self.steps_per_epoch = batch_count(len(self.run.splits.train), self.plan.batch_size, drop_last=True)
        if self.run.max_batches is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, self.run.max_batches)
        self.total = self.plan.epochs * self.steps_per_epoch

    def run_epochs(self) -> None:
        """Train until the plan is done or nothing gets better, and go back to the best epoch."""
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise TrainingError(
                "no parameter of the network can be trained", mend="train before the step that freezes or quantizes it"
            )
        optimizer = self._optimizer()
        schedule = self.plan.schedule or (lambda progress: 1.0)
        scheduler = LambdaLR(optimizer, lambda step: schedule(min(1.0, step / self.total)))
        engine = _Engine(Precision(self.run.precision, self.run.device), optimizer, scheduler)
        parameters = {name: id(parameter) for name, parameter in self.model.named_parameters()}
        watched = next(iter(self.techniques)).name if self.techniques else "training"
        with tqdm(total=self.total, desc=watched, unit="step", leave=False, disable=None) as bar:
            for epoch in range(1, self.plan.epochs + 1):
                self.model.train()
                loss = self._epoch(epoch, engine, bar)
                self._refuse_replaced_parameters(parameters)
                if self._judge(epoch, loss, float(scheduler.get_last_lr()[0])):
                    break
        if self.best.weights is not None:
            own, states = self.best.weights
            self.model.load_state_dict(own)
            self.states.load_state_dict(states)

    def after_step(self, progress: float) -> None:
        """Let every technique act after an update, then set removed weights back to zero."""
        for technique in self.techniques:
            technique.after_step(self.model, self.mine[technique.name], progress, self.run)
        self.held.apply_to(self.model)

    def _optimizer(self) -> Optimizer:
        groups = parameter_groups(self.model, self.states, self.plan.weight_decay)
        return self.plan.optimizer(groups) if self.plan.optimizer is not None else AdamW(groups)

    def _epoch(self, epoch: int, engine: _Engine, bar: Any) -> float:
        """The mean loss of one pass over the training split."""
        total = torch.zeros((), device=self.run.device)
        count = 0
        for batch in self._batches(epoch):
            total += self._update(batch, engine, epoch)
            count += 1
            bar.update()
        mean = float(total) / count
        if not isfinite(mean):
            raise self._diverged(epoch, mean)
        return mean

    def _update(self, batch: Batch, engine: _Engine, epoch: int) -> Tensor:
        """One update of the weights; the loss before it."""
        for technique in self.techniques:
            batch = technique.before_forward(batch, self.mine[technique.name], self.step / self.total, self.run)
        arguments, keywords = self.run.task.inputs(batch)
        with engine.precision.autocast():
            output = self.model(*arguments, **keywords)
            loss = self._loss(batch, output)
        if self.run.device == "cpu" and not torch.isfinite(loss):
            raise self._diverged(epoch, float(loss.detach()))
        engine.precision.backward(loss, engine.optimizer)
        progress = (self.step + 1) / self.total
        for technique in self.techniques:
            technique.after_backward(self.model, self.mine[technique.name], progress, self.run)
        if self.plan.gradient_clip is not None:
            everything = [*self.model.parameters(), *self.states.parameters()]
            nn.utils.clip_grad_norm_(everything, self.plan.gradient_clip)
        engine.precision.update(engine.optimizer)
        engine.scheduler.step()
        self.step += 1
        self.after_step(progress)
        return loss.detach()

    def _batches(self, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.run.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.run.splits.train), generator=generator)
        found = batches(
            self.run.splits.train, self.plan.batch_size, order=order, drop_last=True, device=self.run.device
        )
        return islice(found, self.steps_per_epoch)

    def _loss(self, batch: Batch, output: Any) -> Tensor:
        loss = self.plan.task_weight * self.run.task.loss(output, batch)
        for regularizer in self.plan.regularizers:
            loss = loss + regularizer(self.model)
        for technique in self.techniques:
            term = technique.loss(batch, output, self.model, self.mine[technique.name], self.run)
            if term is not None:
                loss = loss + term
        return loss

    def _judge(self, epoch: int, loss: float, rate: float) -> bool:
        """Evaluate an epoch, keep the best, and say whether training should stop."""
        quality = self.run.evaluate(self.model)
        self.run.log("train/loss", loss, epoch)
        self.run.log("train/learning_rate", rate, epoch)
        self.run.log(f"validation/{quality.name}", quality.value, epoch)
        self.run.progress(
            f"epoch {epoch}/{self.plan.epochs}: loss {loss:.4f}, validation {quality.name} {quality.value:.4f}"
        )
        if self.step / self.total < self.plan.select_from - 1e-9 or self.plan.keep == "last":
            return False
        if quality.better_than(self.best.quality):
            weights = deepcopy((self.model.state_dict(), self.states.state_dict()))
            self.best = _Best(quality, weights)
        else:
            self.best.epochs_since += 1
        return self.plan.patience is not None and self.best.epochs_since >= self.plan.patience

    def _refuse_replaced_parameters(self, known: dict[str, int]) -> None:
        found = {name: id(parameter) for name, parameter in self.model.named_parameters()}
        if changed := sorted(name for name in {*known, *found} if known.get(name) != found.get(name)):
            raise TrainingError(
                f"the parameter {changed[0]!r} was replaced while the network trained",
                mend="a technique must change parameters in place after `begin`",
            )

    def _diverged(self, epoch: int, loss: float) -> TrainingError:
        return TrainingError(
            f"the loss is {loss} in epoch {epoch}, update {self.step + 1}",
            mend="lower the learning rate, add a warm-up or clip the gradient; check the data for NaN",
        )


def _refuse_stolen_parameters(model: nn.Module, states: nn.Module) -> None:
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in states.parameters():
        if id(parameter) in own:
            raise TrainingError(
                f"a technique's state owns the network's parameter {own[id(parameter)]!r}",
                mend="bind to modules by name in `begin`; keep only what is the technique's own in its state",
            )
