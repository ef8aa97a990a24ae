"""Layers whose weights are held as 8-bit integers and that compute in real numbers.

Transposed convolutions, tables of embeddings and recurrent layers have no integer kernel in onnxruntime. Their weights
become integers all the same, a quarter of the bytes, and turn real again in the forward:

    transposed convolution      a scale for each output channel of a group, shared by the groups
    embedding                   a scale for each row of the table; only the rows that are read become real
    LSTM, GRU, Elman network    a scale for each row of each matrix; gates and states are computed in real numbers

Biases stay real. Source: as `affine.py`; cost: one product per weight and forward.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.forwards import TensorsOfTheMoment, convolve_transposed
from compress_core.masks import MARK, hold_zeros
from compress_quantize.affine import WEIGHT_HIGHEST, WEIGHT_LOWEST, quantize, symmetric_scale

PLANNED = "held_as_integers"
"""Attribute of a layer whose weights become integers at the end of the step."""
Sizes = tuple[int, ...]


def rounded(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The integers of a weight, int8, and the scale of each of its slices along an axis."""
    rows = weight.detach().movedim(axis, 0)
    scale = symmetric_scale(rows)
    spread = scale.reshape(-1, *[1] * (rows.ndim - 1))
    integers = quantize(rows, spread, 0, WEIGHT_LOWEST, WEIGHT_HIGHEST).to(torch.int8)
    return integers.movedim(0, axis).contiguous(), scale


def real(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The real numbers that the integers stand for."""
    found: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
        integers, scale, torch.zeros_like(scale, dtype=torch.int8), axis, WEIGHT_LOWEST, WEIGHT_HIGHEST, torch.int8
    )
    return found


class HeldLayer(nn.Module):
    """What these layers share."""

    GEOMETRY: ClassVar[tuple[str, ...]]
    """The names of the constructor's arguments, without `bias`."""
    REAL: ClassVar[type[nn.Module]]
    """The layer of torch that it stands for."""
    AXIS: ClassVar[int] = 0
    """The axis of its weights with a scale for each slice."""

    def _hold(self, name: str, shape: tuple[int, ...]) -> None:
        self._parameters[name] = nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False)
        self.register_buffer(f"{name}_scale", torch.ones(shape[self.AXIS]))

    def held(self) -> list[str]:
        """The names of the weights that are integers."""
        return [name.removesuffix("_scale") for name in self._buffers]

    def real_weight(self, name: str = "weight") -> Tensor:
        """A weight as real numbers."""
        return real(self.get_parameter(name), self.get_buffer(f"{name}_scale"), self.AXIS)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        found = {name: getattr(self, name) for name in self.GEOMETRY}
        return found | {"bias": self.bias is not None} if "bias" in self._parameters else found

    @torch.no_grad()
    def take(self, layer: nn.Module) -> None:
        """Hold the weights of a layer of torch, with its biases and marks."""
        for name, tensor in layer._parameters.items():
            if tensor is None:
                continue
            if name in self.held():
                integers, scale = rounded(tensor.cpu(), self.AXIS)
                self.get_parameter(name).copy_(integers)
                self.get_buffer(f"{name}_scale").copy_(scale)
            else:
                self.get_parameter(name).copy_(tensor)
        for name in vars(layer).get(MARK, ()):
            hold_zeros(self, name)

    @torch.no_grad()
    def reopened(self, shared: dict[int, nn.Parameter]) -> nn.Module:
        """The layer of torch with the numbers that the integers stand for, ready to train."""
        with torch.random.fork_rng(devices=[]):
            layer = self.REAL(**self.arguments()).to(next(self.parameters()).device)
        for name, tensor in layer._parameters.items():
            if tensor is not None:
                tensor.copy_(self.real_weight(name) if name in self.held() else self.get_parameter(name))
        for name in vars(self).get(MARK, ()):
            hold_zeros(layer, name)
        return layer.train(self.training)


class QuantizedEmbedding(HeldLayer):
    """A table whose rows are integers."""

    GEOMETRY = ("num_embeddings", "embedding_dim", "padding_idx")
    REAL = nn.Embedding

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self._hold("weight", (num_embeddings, embedding_dim))

    def forward(self, input: Tensor) -> Tensor:
        """(...) -> (..., embedding_dim)."""
        rows = F.embedding(input, self.get_parameter("weight"))
        scale = F.embedding(input, self.get_buffer("weight_scale").unsqueeze(1))
        return rows.to(scale.dtype) * scale


class _QuantizedConvTranspose(HeldLayer):
    """A transposed convolution over one to three axes."""

    GEOMETRY = (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups"),
        "dilation",
    )
    AXIS = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        *,
        stride: Sizes,
        padding: Sizes,
        output_padding: Sizes,
        dilation: Sizes,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.output_padding, self.dilation, self.groups = output_padding, dilation, groups
        self._hold("weight", (in_channels, out_channels // groups, *kernel_size))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels), requires_grad=False) if bias else None)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, in, ...) -> (N, out, ...)."""
        return convolve_transposed(self, input, self.real_weight(), output_size)


class QuantizedConvTranspose1d(_QuantizedConvTranspose):
    """A transposed convolution over one axis that holds integers."""

    REAL = nn.ConvTranspose1d


class QuantizedConvTranspose2d(_QuantizedConvTranspose):
    """A transposed convolution over two axes that holds integers."""

    REAL = nn.ConvTranspose2d


class QuantizedConvTranspose3d(_QuantizedConvTranspose):
    """A transposed convolution over three axes that holds integers."""

    REAL = nn.ConvTranspose3d


class _QuantizedRecurrent(HeldLayer, TensorsOfTheMoment):
    """What the recurrent layers share: torch's forward, with the tensors of the moment."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        for name in self._flat_weights_names:
            if name.startswith("weight"):
                self._hold(name, tuple(self.get_parameter(name).shape))
        self.requires_grad_(False)

    def tensor(self, name: str) -> Tensor | None:
        """A weight from its integers, or a bias."""
        return self.real_weight(name) if name in self.held() else self._parameters[name]

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self.GEOMETRY}


_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


class QuantizedLSTM(_QuantizedRecurrent, nn.LSTM):
    """An LSTM that holds integers."""

    GEOMETRY = (*_RECURRENT, "proj_size")
    REAL = nn.LSTM


class QuantizedGRU(_QuantizedRecurrent, nn.GRU):
    """A GRU that holds integers."""

    GEOMETRY = _RECURRENT
    REAL = nn.GRU


class QuantizedRNN(_QuantizedRecurrent, nn.RNN):
    """An Elman network that holds integers."""

    GEOMETRY = (*_RECURRENT, "nonlinearity")
    REAL = nn.RNN


WEIGHT_ONLY: tuple[type[HeldLayer], ...] = (
    *(QuantizedEmbedding, QuantizedConvTranspose1d, QuantizedConvTranspose2d, QuantizedConvTranspose3d),
    *(QuantizedLSTM, QuantizedGRU, QuantizedRNN),
)
_HELD: dict[type[nn.Module], type[HeldLayer]] = {kind.REAL: kind for kind in WEIGHT_ONLY}


def can_hold(module: nn.Module) -> bool:
    """Whether a layer of torch has a form here."""
    return type(module) in _HELD and getattr(module, "max_norm", None) is None


def planned(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights become integers at the end of the step, by path."""
    return {path: module for path, module in model.named_modules() if vars(module).get(PLANNED)}


def hold(layer: nn.Module) -> HeldLayer:
    """The layer of integers for a layer of torch, on its device."""
    kind = _HELD[type(layer)]
    arguments = {name: getattr(layer, name) for name in kind.GEOMETRY}
    if "bias" in layer._parameters:
        arguments["bias"] = layer._parameters["bias"] is not None
    with torch.random.fork_rng(devices=[]):
        held = kind(**arguments)
    held.take(layer)
    return held.to(next(layer.parameters()).device).train(layer.training)
