"""One of several classes for each example.

    loss(z, y) = -log softmax(z)_y, smoothed:  (1 - s) loss(z, y) + s / K sum_k loss(z, k)

z are the logits (examples, K), y the class in [0, K), s the smoothing (Szegedy et al. 2016, Rethinking the
Inception Architecture, sec. 7). The quality is the share of examples whose largest logit is that of their class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from compress_core.errors import DataError, ModelError
from compress_tasks.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torchmetrics import Metric

    from compress_core.data import Batch, Split


class Classification(Supervised):
    """Give each example one of several classes; the quality is the accuracy."""

    name = "classification"
    proportion = True

    top_k: int | None = Field(default=None, ge=2)
    """Also measures how often the class is among that many of the largest logits."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of the loss that goes to all classes alike."""

    def loss(self, output: object, batch: Batch) -> Tensor:
        """The mean cross-entropy of a batch."""
        from torch.nn import functional as F

        return F.cross_entropy(self.logits(output), self.target(batch), label_smoothing=self.label_smoothing)

    def metrics(self, logits: Tensor) -> Mapping[str, Metric]:
        """The accuracy, and the top-k accuracy if it was asked for and there are more than k classes."""
        from torchmetrics.classification import MulticlassAccuracy

        classes = logits.shape[-1]
        found: dict[str, Metric] = {"accuracy": MulticlassAccuracy(num_classes=classes, average="micro")}
        if self.top_k is not None and self.top_k < classes:
            found[f"top_{self.top_k}"] = MulticlassAccuracy(num_classes=classes, average="micro", top_k=self.top_k)
        return found

    def check(self, output: object, split: Split) -> None:
        """Compare the labels of a split with the classes that the network tells apart.

        Raises:
            ModelError: the output is not of the shape (examples, classes).
            DataError: a label is no class of the network; the message names the column, the value and the row.
        """
        import torch

        logits = self.logits(output)
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ModelError(
                f"the network gives {tuple(logits.shape)}; classification takes (examples, classes) "
                "with two classes or more",
                where="task.output",
                mend="name the part of its output that holds the logits, or change its last layer",
            )
        classes = logits.shape[1]
        label = split.column(self.label)
        where = f"column {self.label!r}"
        if label.is_floating_point() or label.dtype == torch.bool or label.ndim != 1:
            raise DataError(
                f"the labels are {str(label.dtype).removeprefix('torch.')} of shape {tuple(label.shape)}; "
                "classification takes one whole number for each example",
                where=where,
                mend="number the classes from 0 (int64), or use `task: {name: regression}`",
            )
        wrong = torch.nonzero((label < 0) | (label >= classes)).flatten()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"the label {int(label[row])} in row {row} is no class of the network, which has {classes} "
                f"(0 to {classes - 1}); {len(wrong)} of {len(label)} labels are outside",
                where=where,
                mend=f"number the classes from 0, or build the network for {int(label.max()) + 1} classes",
            )
