"""One number or several for each example.

    loss(z, y) = mean (z - y)^2

The qualities: mse as above, mae = mean |z - y|, and r2 = 1 - sum (z - y)^2 / sum (y - mean y)^2, the mean over the
outputs if there are several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from compress_core.errors import DataError, ModelError
from compress_tasks.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torchmetrics import Metric

    from compress_core.data import Batch, Split


class Regression(Supervised):
    """Give each example one number or several; learns the mean squared error."""

    name = "regression"

    quality: Literal["mse", "mae", "r2"] = "mse"
    """What networks are compared by: the mean squared error, the mean absolute error or the share of the variance
    that is explained. The other two are measured beside it."""

    def loss(self, output: object, batch: Batch) -> Tensor:
        """The mean squared error of a batch."""
        from torch.nn import functional as F

        logits = self.logits(output)
        return F.mse_loss(logits, self.target(batch).to(logits.dtype))

    def logits(self, output: object) -> Tensor:
        """The predictions: (examples,) for one number each, (examples, numbers) for several."""
        return _without_single_axis(super().logits(output))

    def target(self, batch: Batch) -> Tensor:
        """The label, in the shape of the predictions."""
        label = super().target(batch)
        return _without_single_axis(label if label.is_floating_point() else label.float())

    def metrics(self, logits: Tensor) -> Mapping[str, Metric]:
        """The chosen quality first, then the other two."""
        from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

        found: dict[str, Metric] = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score()}
        return {self.quality: found.pop(self.quality), **found}

    def check(self, output: object, split: Split) -> None:
        """Compare the labels of a split with what the network gives.

        Raises:
            ModelError: the network gives another number of values than there are labels.
            DataError: a label is no number; the message names the column and the row.
        """
        import torch

        label = split.column(self.label)
        numbers, wanted = self.logits(output).shape[1:], self.target({self.label: label}).shape[1:]
        if numbers != wanted:
            raise ModelError(
                f"the network gives {_shape(numbers)} for each example, column {self.label!r} holds {_shape(wanted)}",
                where="task.output",
                mend="change the network's last layer, or name the part of its output that is judged",
            )
        wrong = torch.nonzero(~torch.isfinite(label).flatten(1).all(1) if label.ndim > 1 else ~torch.isfinite(label))
        if len(wrong):
            row = int(wrong[0, 0])
            raise DataError(
                f"the label in row {row} is {label[row].tolist()}; {len(wrong)} of {len(label)} are no numbers",
                where=f"column {self.label!r}",
                mend="leave these examples out",
            )


def _without_single_axis(values: Tensor) -> Tensor:
    return values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values


def _shape(numbers: tuple[int, ...]) -> str:
    return f"values of shape {tuple(numbers)}" if numbers else "one number"
