"""What a plugin may provide: Technique, TrainingTechnique, Criterion, DataSource, Task, Exporter.

A part is a frozen pydantic model: its fields are its parameters, their attribute docstrings are the
documentation of the parameters, and its class docstring is its own. A part holds no state; what a
technique needs while the network trains lives in the `nn.Module` that `begin` returns.

Importing this module imports no torch, so that a recipe is checked in a moment. Plugins keep it so by
importing their mathematics inside the methods that use it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from compress_core.plan import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import Metric

    from compress_core.data import Batch, Split, Splits
    from compress_core.run import Run

    Train = Callable[[nn.Module, "TrainingTechnique | None"], nn.Module]
    """One training of a step, with the technique that takes the conductor's place."""

__all__ = [
    "Change",
    "Criterion",
    "DataSource",
    "Exporter",
    "Part",
    "Task",
    "Technique",
    "TrainingPlan",
    "TrainingTechnique",
]


class Change(StrEnum):
    """What a technique changes in a network; it decides what may follow it and in which order."""

    ARCHITECTURE = "architecture"
    WEIGHTS = "weights"
    NUMBERS = "numbers"
    """The format of the numbers: integers, codes. Only export and evaluation may follow."""
    TRAINING = "training"
    """How the network trains, and nothing by itself."""


class Part(BaseModel, ABC):
    """Parameters of something that a plugin provides, found in recipes by `name`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: ClassVar[str]
    """What a recipe calls it."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of other kinds that it works with; a change in their plugins makes its results old."""
        return ()

    def imports(self) -> tuple[str, ...]:
        """The import strings it resolves: changes in the user's code are noticed, what it builds is trusted."""
        return ()


class Technique(Part):
    """Makes a network smaller, faster or better: a model in, a model out."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Parameters that show it at work; the documentation and the conformance kit use them."""
    needs_teacher: ClassVar[bool] = False
    """Whether the step must name a teacher."""
    keeps_teacher: ClassVar[bool] = False
    """Whether the teacher's network becomes part of the result."""
    after_training: ClassVar[bool] = False
    """Whether it works after the training of its step rather than before."""
    reopens_numbers: ClassVar[bool] = False
    """Whether it may follow a change of NUMBERS, and undoes it."""

    @property
    def changes(self) -> frozenset[Change]:
        """What these parameters change."""
        return frozenset({Change.WEIGHTS})

    @abstractmethod
    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Return the changed network. It may change `model`, which is the step's own copy, in place."""


class TrainingTechnique(Technique):
    """A technique that works while the network trains, alone or together with others in one step.

    The loop calls `plan`, `prepare`, `begin`, then `before_forward`, `loss`, `after_backward` and `after_step` at
    every update, and `finish` once, on the best checkpoint. With no epochs it calls `plan`, `prepare`, `begin`,
    `after_step(progress=1)` and `finish`. If anything fails after `begin`, `abandon` is called instead of `finish`.

    One that `conducts` decides how often the loop runs: by rounds, with steps back, with weights taken back.
    """

    needs_epochs: ClassVar[bool] = False
    """Whether it does nothing unless some technique of the step brings epochs."""

    @property
    def brings_epochs(self) -> bool:
        """Whether these parameters make the step train."""
        return False

    @property
    def conducts(self) -> bool:
        """Whether these parameters make it lead the training of its step, by `conduct`."""
        return False

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Train with this technique alone."""
        return run.train(model, [self])

    def conduct(self, model: nn.Module, train: Train, run: Run) -> nn.Module:
        """Return the trained network, calling `train(model, stand_in)` as often as it takes.

        Each call trains with all techniques of the step, `stand_in` in the place of this one (None: without it). It
        may change `model` in place.
        """
        return train(model, self)

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Return the plan with this technique's wishes in it."""
        return plan

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Change the network for training: fake quantizers, factors, another dropout rate."""
        return model

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """Return the state of this training, or None.

        Called after every `prepare` and before the optimizer is made. The state's parameters join the
        optimizer and its buffers the checkpoint; neither is saved with the network. It may not own a
        parameter of the network.
        """
        return None

    def before_forward(self, batch: Batch, state: nn.Module | None, progress: float, run: Run) -> Batch:
        """Return the training examples as the network and its teacher are to see them, in tensors of its own.

        `progress` is the share of all updates that were done before this one, in [0, 1).
        """
        return batch

    def loss(self, batch: Batch, output: Any, model: nn.Module, state: nn.Module | None, run: Run) -> Tensor | None:
        """Return a term (a scalar) beside the task's loss, or None."""
        return None

    def after_backward(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Read or change the gradients, before the update."""

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Act after an update; `progress` is the share of all updates that are done, in (0, 1]."""

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Return the network as it is to be kept, from the best checkpoint."""
        return model

    def abandon(self, model: nn.Module, state: nn.Module | None, run: Run) -> None:
        """Take away what `begin` has hung on the network or the teacher; called when the training fails."""


class Criterion(Part):
    """How much the weights or the channels of a network matter: what scores least goes first.

    A technique that removes something finds it by name. What it has observed lives in the module that `begin`
    returns. Scores are compared within one network and one moment only; they need no common scale.
    """

    needs_gradients: ClassVar[bool] = False
    """Whether `observe` has to be called after some backward passes before the scores are read."""
    needs_epochs: ClassVar[bool] = False
    """Whether only a training tells it anything."""

    @classmethod
    def scores_weights(cls) -> bool:
        """Whether it has scores for single weights."""
        return cls.weight_scores is not Criterion.weight_scores

    @classmethod
    def scores_channels(cls) -> bool:
        """Whether it has scores for channels."""
        return cls.scores_weights() or cls.channel_scores is not Criterion.channel_scores

    @classmethod
    def scores_modules(cls) -> bool:
        """Whether it has scores for whole modules."""
        return cls.scores_weights() or cls.module_scores is not Criterion.module_scores

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """Return what it keeps while it observes, or None."""
        return None

    def observe(self, model: nn.Module, state: nn.Module | None) -> None:
        """Note the gradients of one backward pass."""

    def measure(self, model: nn.Module, state: nn.Module | None, run: Run) -> None:
        """Called before scores are read: measure on calibration batches what the scores rest on."""

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """The score of each entry of the weight of that name, in its shape; None if it has none for it.

        Whether it is None may not depend on what was observed: it is asked before anything was. Scores of entries that
        go together are added, and `pooled` makes one score of the sum.
        """
        return None

    def channel_scores(self, model: nn.Module, path: str, side: str, state: nn.Module | None) -> Tensor | None:
        """The score of each channel of the layer at `path`, (channels,); None if it has none for this layer.

        Used where single weights have no scores. Scores of channels that go together are added, over all layers that
        write them (`side` is `out`) or read them (`in`).
        """
        return None

    def module_scores(
        self, model: nn.Module, without: Mapping[str, Callable[[Tensor], Tensor]], state: nn.Module | None, run: Run
    ) -> Tensor | None:
        """The score of each of these modules as a whole, (modules,); None if it has none.

        `without` gives for each path what a module's output becomes when it goes, as a function of its input. Where
        there is no such score, those of the module's weights are added.
        """
        return None

    def pooled(self, total: Tensor) -> Tensor:
        """The scores of sets of weights, given the sums over each set."""
        return total


class DataSource(Part):
    """Where the examples come from."""

    @abstractmethod
    def splits(self, seed: int) -> Splits:
        """Read the examples; `seed` decides whatever is split or sampled."""

    def files(self) -> tuple[Path, ...]:
        """The files it reads, so that a change in one of them is noticed."""
        return ()


class Task(Part):
    """What the network is for: how a batch goes in, and how its output is judged."""

    proportion: ClassVar[bool] = False
    """Whether the quality is a share of examples, whose interval is Wilson's; else it is bootstrapped."""

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the network's forward."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    @abstractmethod
    def logits(self, output: Any) -> Tensor:
        """Return the tensor in the network's output that is learned from and judged."""

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """Return what the metrics compare the logits with."""

    @abstractmethod
    def metrics(self, logits: Tensor) -> Mapping[str, Metric]:
        """Return the metrics by name, for logits of this shape; the first one is the quality."""

    def size(self, batch: Batch) -> int:
        """Return the number of examples in a batch."""
        return len(next(iter(batch.values())))

    def check(self, output: Any, split: Split) -> None:
        """Raise a `DataError` if the split cannot be learned by a network with such an output."""


class Exporter(Part):
    """A file format and the runtime that runs it; `use: {export: {format: NAME}}` finds it by name."""

    magic: ClassVar[bytes] = b""
    """What its files begin with, if `unpack` restores the artifact from one of them."""

    @classmethod
    def missing(cls) -> str:
        """What must be installed for its runtime and is not, as `pip install` takes it; empty if nothing is missing."""
        return ""

    def chosen(self, model: nn.Module, run: Run) -> Exporter:
        """The exporter that writes this network: this one, or another that it has found by measuring."""
        return self

    @abstractmethod
    def export(
        self, model: nn.Module, folder: Path, example: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> Mapping[str, Any] | None:
        """Write the network's files into `folder`. The first axis of every example input is the batch.

        What it returns stands in the manifest beside the files: `inputs` and `outputs`, each with name, dtype and
        shape.
        """

    @abstractmethod
    def load(self, folder: Path, threads: int) -> Callable[..., Any]:
        """Open the files in their runtime; the result is called like the network, tensors in, tensors out."""

    def unpack(self, file: Path, folder: Path) -> None:
        """Restore the artifact that a file holds which begins with `magic`, as a new folder."""
        raise NotImplementedError(f"{self.name} has a `magic` and no `unpack`")
