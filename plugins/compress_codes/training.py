"""Layers that compute with coded weights while they train: torch's own, with a coder beside each weight.

Everything that knows `nn.Conv2d` and `nn.Linear` knows them, and their parameters stay the same objects: the real
weights, from which codes are made at every call. What a coder learns lies in its own parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_codes.coding import Coding, Granularity, Rows, rows_of
from compress_core.forwards import TensorsOfTheMoment, convolve_transposed


class Coder(nn.Module):
    """Makes codes of one weight.

    Args:
        axis: on which the output channels of the weight lie.
        granularity: what has a scale of its own.
        group: how many entries a group has.
    """

    freezes: ClassVar[bool] = False
    """Whether the weight itself does not train with the codes."""

    def __init__(self, axis: int = 0, granularity: Granularity = "channel", group: int = 0) -> None:
        super().__init__()
        self.axis, self.granularity, self.group = axis, granularity, group
        self.active = False
        """Whether the network computes with the codes; before, with the real weight."""
        self.trained = False
        """Whether the network has trained with the codes."""
        self.froze = False
        """Whether the weight trained before."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        if not self.active:
            return weight
        self.trained = self.trained or self.training
        return self.coded(weight)

    def rows(self, weight: Tensor) -> Rows:
        """How the weight is cut into rows."""
        return rows_of(tuple(weight.shape), self.axis, self.granularity, self.group)

    @property
    def book(self) -> nn.Module:
        """What it keeps; coders with one book settle together."""
        return self

    @torch.no_grad()
    def settle(self, weights: list[nn.Parameter]) -> None:
        """Take what the book keeps from the weights as they are; called when coding begins, and again untrained."""

    @abstractmethod
    def coding(self, weight: Tensor) -> Coding:
        """The codes of the weight, without gradients."""

    def coded(self, weight: Tensor) -> Tensor:
        """What the codes stand for; gradients pass straight through to the weight."""
        return straight_through(weight, self.coding(weight.detach()).weight())

    def follow(self, progress: float, weight: nn.Parameter) -> None:
        """Act after an update that was made with codes; `progress` is that of the training with codes, in (0, 1]."""

    def refuses(self, weight: Tensor) -> str:
        """Why this weight cannot be coded; empty if it can."""
        return ""


def straight_through(weight: Tensor, value: Tensor, passes: Tensor | None = None) -> Tensor:
    """`value`, with the gradient of `weight`, or no gradient where `passes` (bool) is False."""
    found: Tensor = _StraightThrough.apply(weight, value, passes)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, value: Tensor, passes: Tensor | None) -> Tensor:
        context.save_for_backward(passes)
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (passes,) = context.saved_tensors
        return gradients[0] if passes is None else gradients[0] * passes, None, None


class Training(nn.Module):
    """What the training layers share."""

    coders: nn.ModuleDict
    """The coder of each weight, by the weight's name."""
    kind: type[nn.Module]
    """The layer of torch that it was."""

    def coded(self, name: str = "weight") -> Tensor:
        """A weight as the layer computes with it."""
        found: Tensor = self.coders[name](self._parameters[name])
        return found


class TrainingLinear(Training, nn.Linear):
    """A linear layer that trains with codes."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(input, self.coded(), self.bias)


class TrainingEmbedding(Training, nn.Embedding):
    """A table of rows that trains with codes."""

    def forward(self, input: Tensor) -> Tensor:
        """(...) -> (..., embedding_dim)."""
        return F.embedding(input, self.coded(), self.padding_idx)


class TrainingConv1d(Training, nn.Conv1d):
    """A convolution that trains with codes."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, L) -> (N, out, L')."""
        found: Tensor = self._conv_forward(input, self.coded(), self.bias)
        return found


class TrainingConv2d(Training, nn.Conv2d):
    """A convolution that trains with codes."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        found: Tensor = self._conv_forward(input, self.coded(), self.bias)
        return found


class TrainingConv3d(Training, nn.Conv3d):
    """A convolution that trains with codes."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, D, H, W) -> (N, out, D', H', W')."""
        found: Tensor = self._conv_forward(input, self.coded(), self.bias)
        return found


class _TrainingTransposed(Training):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, in, ...) -> (N, out, ...)."""
        return convolve_transposed(self, input, self.coded(), output_size)


class TrainingConvTranspose1d(_TrainingTransposed, nn.ConvTranspose1d):
    """A transposed convolution that trains with codes."""


class TrainingConvTranspose2d(_TrainingTransposed, nn.ConvTranspose2d):
    """A transposed convolution that trains with codes."""


class TrainingConvTranspose3d(_TrainingTransposed, nn.ConvTranspose3d):
    """A transposed convolution that trains with codes."""


class _TrainingRecurrent(Training, TensorsOfTheMoment):
    def tensor(self, name: str) -> Tensor | None:
        return self.coded(name) if name in self.coders else self._parameters[name]


class TrainingLSTM(_TrainingRecurrent, nn.LSTM):
    """An LSTM that trains with codes."""


class TrainingGRU(_TrainingRecurrent, nn.GRU):
    """A GRU that trains with codes."""


class TrainingRNN(_TrainingRecurrent, nn.RNN):
    """An Elman network that trains with codes."""


TRAINING: dict[type[nn.Module], type[Training]] = {
    nn.Linear: TrainingLinear,
    nn.Embedding: TrainingEmbedding,
    nn.Conv1d: TrainingConv1d,
    nn.Conv2d: TrainingConv2d,
    nn.Conv3d: TrainingConv3d,
    nn.ConvTranspose1d: TrainingConvTranspose1d,
    nn.ConvTranspose2d: TrainingConvTranspose2d,
    nn.ConvTranspose3d: TrainingConvTranspose3d,
    nn.LSTM: TrainingLSTM,
    nn.GRU: TrainingGRU,
    nn.RNN: TrainingRNN,
}
"""The training layer of each type that can be coded; subclasses have a forward of their own and cannot."""


def output_axis(layer: nn.Module) -> int:
    """The axis of the layer's weight on which its output channels lie."""
    return int(isinstance(layer, nn.modules.conv._ConvTransposeNd))


def make_trainable(layer: nn.Module, coders: dict[str, Coder]) -> None:
    """Turn a layer of torch into its training layer, in place: parameters, marks and hooks stay."""
    kind = type(layer)
    layer.__class__ = TRAINING[kind]
    assert isinstance(layer, Training)
    layer.kind = kind
    layer.coders = nn.ModuleDict(coders).train(layer.training)


def make_real(layer: Training) -> None:
    """Turn a training layer into the layer that it was, in place."""
    kind = layer.kind
    del layer.coders
    del layer.kind
    layer.__class__ = kind  # type: ignore[assignment]
    if isinstance(layer, nn.RNNBase):
        layer._flat_weights = [layer._parameters.get(name) for name in layer._flat_weights_names]
