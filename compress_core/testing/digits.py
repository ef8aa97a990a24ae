"""The data, the task and the training that the kit works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.data import Batch, Columns, Splits
from compress_core.parts import Change, Task, TrainingPlan, TrainingTechnique
from compress_core.run import Run, as_teacher

if TYPE_CHECKING:
    from torchmetrics import Metric


@lru_cache
def digits() -> Splits:
    """The 1,797 digits of scikit-learn: 997 to learn from, 350 to choose by, 450 to report on."""
    bunch = load_digits()
    image = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    label = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
    train, validation, test = (
        Columns({"image": image[part], "label": label[part]}) for part in torch.split(order, [997, 350, 450])
    )
    return Splits(train, validation, test)


class Classification(Task):
    """The smallest task for the digits."""

    name = "test-classification"
    proportion = True

    passing: Literal["positional", "dictionary"] = "positional"
    """Whether the forward takes the image itself or a dictionary that holds it."""

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The image."""
        return (({"image": batch["image"]},), {}) if self.passing == "dictionary" else ((batch["image"],), {})

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The mean cross-entropy."""
        return F.cross_entropy(self.logits(output), batch["label"])

    def logits(self, output: Any) -> Tensor:
        """The output itself, or its entry `logits`."""
        logits: Tensor = output["logits"] if isinstance(output, dict) else output
        return logits

    def target(self, batch: Batch) -> Tensor:
        """The class of each image."""
        return batch["label"]

    def metrics(self, logits: Tensor) -> dict[str, Metric]:
        """The share of images that are classified rightly."""
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(num_classes=logits.shape[-1], average="micro")}


class Epochs(TrainingTechnique):
    """Adam for some epochs, and nothing else: the training that a technique meets in the kit."""

    name = "kit-epochs"
    example: ClassVar[Mapping[str, Any]] = {"epochs": 1}

    epochs: int = Field(default=1, ge=1)
    """Passes over the training split."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """Adam's step size."""

    @property
    def changes(self) -> frozenset[Change]:
        """Only how the network trains."""
        return frozenset({Change.TRAINING})

    @property
    def brings_epochs(self) -> bool:
        """Always."""
        return True

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Adam for the epochs, unless another technique has planned more of them."""
        return replace(
            plan,
            epochs=max(plan.epochs, self.epochs),
            optimizer=lambda groups: torch.optim.Adam(groups, lr=self.learning_rate),
        )


def make_run(splits: Splits | None = None, teacher: nn.Module | None = None, **fields: Any) -> Run:
    """A run on the digits; `fields` are those of `compress_core.run.Run`."""
    fields.setdefault("task", Classification())
    return Run(splits=splits or digits(), teacher=None if teacher is None else as_teacher(teacher), **fields)
