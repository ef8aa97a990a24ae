"""Fully connected networks: x -> relu(W x + b), layer after layer, and a last layer without relu."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """A multilayer perceptron over the flattened input.

    Args:
        inputs: numbers per example, the product of its axes.
        widths: outputs of each hidden layer.
        classes: outputs of the last layer.
    """

    def __init__(self, inputs: int = 64, widths: Sequence[int] = (256, 128), classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((inputs, *widths)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear((inputs, *widths)[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (examples, classes) for inputs (examples, ...)."""
        return self.head(self.hidden(image))
