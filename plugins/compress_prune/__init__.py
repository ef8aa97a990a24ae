"""Pruning: weights, sets of them or whole channels go, at once or little by little while the network trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.catalog import catalog
from compress_core.parts import Change, Criterion, Part, Technique, TrainingPlan, TrainingTechnique
from compress_prune.block_criteria import BLOCK_CRITERIA
from compress_prune.conditions import ROUNDS
from compress_prune.criteria import BUILT_IN, L1

if TYPE_CHECKING:
    from torch import nn

    from compress_core.parts import Train
    from compress_core.run import Run
    from compress_prune.masks import Removal

STRUCTURAL = frozenset({"channel", "head", "depth"})
"""The granularities that change the architecture."""
AT_ONCE = frozenset({"one-shot", "rigl"})
"""The schedules that prune before the first update."""
DYNAMIC = frozenset({"surgery", "rigl"})
"""The schedules by which weights come back."""


class Prune(TrainingTechnique):
    """Remove the weights or the channels that matter least, and let the network recover while it trains.

    With `granularity: weight`, `block` or `kernel` weights become zero and stay zero in every later training. The
    network gets no faster by it, but its file packs better. With `granularity: channel` whole channels go, together
    with all that writes and reads them: the network gets smaller and faster. A network without the channels
    computes what it computes with zeros in their place; channels for which that is not so (those that a
    LayerNorm, attention, an LSTM or a padding shortcut couples) are left alone and named. With `granularity: head`
    heads of attention go in the same way, and with `granularity: depth` whole residual blocks and layers that keep
    the shape: a gradual schedule fades them out, and with `one-shot` they are gone before the network trains.

    With epochs in its step, `gradual` raises the share from 0 at `start` to `amount` at `end` along
    s(t) = amount * (1 - (1 - t)^3), and the best epoch is chosen after `end`. Without epochs, and with
    `one-shot`, everything goes at once. `surgery` rises like `gradual`, but weights go on being trained behind their
    mask and come back when they have become large; `rigl` prunes at once and then exchanges the smallest weights
    for those with the largest gradients.

    Three schedules train the step several times. `iterative` prunes and trains by turns, `lottery` gives the weights
    that are left their early values before each training, and `progressive` prunes on while the validation quality
    loses at most `max_loss` points, goes back a step where it does, and at most to `amount`.
    """

    name = "prune"
    example: ClassVar[dict[str, float]] = {"amount": 0.5}

    amount: float | None = Field(default=None, gt=0, lt=1)
    """The share that goes: of the weights, their sets, or the channels. What is zero already counts."""
    granularity: Literal["weight", "block", "kernel", "channel", "head", "depth"] = "weight"
    """What goes: single weights, blocks of them, kernels of convolutions, whole channels (units, filters), attention
    heads, or whole residual blocks and layers."""
    pattern: str = ""
    """How many single weights stay of how many that follow one another along the inputs, as in `2:4`; no `amount`."""
    block: tuple[int, int] = (4, 4)
    """Rows and columns of a block of the weight as a matrix, (outputs, inputs times kernel)."""
    criterion: str | None = None
    """By what is ranked: a built-in criterion, or a plugin's; by default `influence` for blocks and layers, else `l2`.
    `compress plugins` lists all."""
    of: Literal["count", "parameters", "macs", "latency"] = "count"
    """Of what `amount` is a share: of their number, or for channels of the network's parameters, MACs or time."""
    allocation: Literal["uniform", "global", "erk", "sensitivity"] = "uniform"
    """Whether `amount` holds for each layer, for all together, or is dealt out by their shapes or what each costs."""
    density: float = Field(default=0.0, ge=0, le=4)
    """For single weights: the power of (row density * column density / density^2) by which scores are multiplied, anew
    each time that some go. Whole rows and columns empty out, and files pack smaller. 0 leaves scores alone."""
    schedule: Literal["gradual", "one-shot", "surgery", "rigl", "iterative", "lottery", "progressive"] = "gradual"
    """Whether the share rises while the network trains, all goes at once, weights may come back, or it takes rounds."""
    start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training at which the schedule starts."""
    end: float = Field(default=0.5, gt=0, le=1)
    """Share of the training at which `amount` has been reached, and from which nothing comes back."""
    every: int = Field(default=100, ge=1)
    """With `rigl`, the number of updates after which weights are exchanged."""
    regrow: float = Field(default=0.3, gt=0, lt=1)
    """With `rigl`, the share of the weights that is exchanged at first; it falls to 0 along a cosine."""
    rounds: int = Field(default=5, ge=1)
    """How often `iterative` and `lottery` prune and train."""
    spacing: Literal["geometric", "linear"] = "geometric"
    """Whether each of these rounds takes the same share of what is left, or of all."""
    rewind: float = Field(default=0.0, ge=0, lt=1)
    """Share of a first training whose weights `lottery` goes back to; 0 are those with which the step begins."""
    max_loss: float | None = Field(default=None, ge=0)
    """With `progressive`, how many points the validation quality may lose against the teacher, or without one against
    the step's input. A point is a hundredth where more is better (0.5 of accuracy: from 0.970 to 0.965), and one per
    cent of the quality that is to be kept where less is better (an error)."""
    step: float = Field(default=0.2, gt=0, lt=1)
    """The share of what is left that `progressive` tries to take; it is halved at each step back."""
    smallest_step: float = Field(default=0.02, gt=0, lt=1)
    """The share below which `progressive` stops."""
    runtime: str = "torch"
    """Where `of: latency` is measured: in torch, or in an exporter's runtime, as in `onnx`."""
    batch: int = Field(default=1, ge=1)
    """Examples per call whose latency is measured."""
    multiple: int = Field(default=1, ge=1)
    """The number of channels that stay is the nearest multiple of this, as in 16 for integer kernels."""
    only: tuple[str, ...] = ()
    """Paths of the only modules to prune, with the channels that are coupled with theirs; empty means all."""
    skip: tuple[str, ...] = ()
    """Paths of modules whose weights, or output channels, stay; `*` stands for anything, as in `encoder.*`."""

    @model_validator(mode="after")
    def _fits(self) -> Prune:
        from compress_prune.fitting import check

        check(self)
        return self

    @property
    def share(self) -> float:
        """The share that goes."""
        return 1.0 if self.amount is None else self.amount

    @property
    def ranked_by(self) -> str:
        """The name of the criterion."""
        return self.criterion or ("influence" if self.granularity == "depth" else "l2")

    @property
    def ranking(self) -> Criterion:
        """The criterion; l1 and l2 are the same for single weights."""
        if self.granularity == "weight" and self.ranked_by == "l2":
            return L1()
        return catalog().criteria[self.ranked_by]()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The criterion, and the runtime in which latency is measured."""
        if self.of == "latency" and self.runtime != "torch":
            return (self.ranking, catalog().exporters[self.runtime]())
        return (self.ranking,)

    @property
    def changes(self) -> frozenset[Change]:
        """The weights, and with channels the architecture."""
        weights = frozenset({Change.WEIGHTS})
        return weights | {Change.ARCHITECTURE} if self.granularity in STRUCTURAL else weights

    @property
    def needs_epochs(self) -> bool:  # type: ignore[override]
        """With a criterion or a schedule that learns from training."""
        return self.schedule in {*DYNAMIC, "iterative", "lottery"} or self.ranking.needs_epochs

    @property
    def conducts(self) -> bool:
        """With the schedules that train by rounds."""
        return self.schedule in ROUNDS

    def conduct(self, model: nn.Module, train: Train, run: Run) -> nn.Module:
        """Prune and train by rounds."""
        from compress_prune.rounds import conduct

        return conduct(self, model, train, run)

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Choose no epoch before the schedule has ended."""
        if self.schedule == "one-shot":
            return plan
        return replace(plan, select_from=max(plan.select_from, self.end))

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take attention apart whose heads shall go; take out blocks that go at once.

        Raises:
            ModelError: no block can go.
        """
        if self.granularity == "head":
            from compress_prune.headwise import taken_apart

            return taken_apart(self, model)
        if self.granularity == "depth" and self.schedule in AT_ONCE:
            from compress_prune.depthwise import without_blocks

            return without_blocks(self, model, run)
        return model

    def begin(self, model: nn.Module, run: Run) -> nn.Module:
        """Find what can go, and with a one-shot schedule remove it.

        Raises:
            ModelError: nothing can go, or a pattern in `skip` matches no module.
        """
        masks = self._masks(model, run).to(run.device)
        if self.schedule in AT_ONCE:
            masks.grow(model, 1.0, run)
        return masks

    def after_backward(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Show the gradients to the criterion, while it still matters."""
        if self.schedule != "one-shot" and progress <= self.end:
            _masks(state).observe(model, progress)

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Let the masks grow along the schedule, and set what is gone to zero."""
        masks = _masks(state)
        masks.grow(model, self._done(progress), run)
        masks.hold(model)

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Hold the zeros of weights; remove channels for good.

        Raises:
            ModelError: the network would compute something else without the channels.
        """
        masks = _masks(state)
        masks.grow(model, 1.0, run)
        return masks.finish(model, run)

    def abandon(self, model: nn.Module, state: nn.Module | None, run: Run) -> None:
        """Take away what blocks that fade have hung on the network."""
        _masks(state).abandon()

    def _done(self, progress: float) -> float:
        """How much of what shall go in the end has gone at `progress`; it rises in steps."""
        from compress_prune.ramp import UPDATES, cubic, ramp

        if self.schedule in AT_ONCE or progress >= self.end:
            return 1.0
        return cubic(int(ramp(progress, self.start, self.end) * UPDATES) / UPDATES, start=0.0, end=1.0, final=1.0)

    def _masks(self, model: nn.Module, run: Run) -> Removal:
        if self.granularity == "channel":
            from compress_prune.channelwise import channel_masks

            return channel_masks(self, model, run)
        if self.granularity == "head":
            from compress_prune.headwise import head_masks

            return head_masks(self, model, run)
        if self.granularity == "depth":
            from compress_prune.depthwise import fading_blocks

            return fading_blocks(self, model, run)
        from compress_prune.weightwise import weight_masks

        return weight_masks(self, model, run)


def _masks(state: nn.Module | None) -> Removal:
    from compress_prune.masks import Removal

    assert isinstance(state, Removal)
    return state


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Prune]


@hookimpl
def register_criteria() -> Sequence[type[Criterion]]:
    """The criteria of this plugin."""
    return (*BUILT_IN, *BLOCK_CRITERIA)
