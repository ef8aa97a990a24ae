"""Layers with weights of integers: those that train, and those that are kept.

The training layers are torch's own with a fake-quantized weight, so everything that knows `nn.Conv2d` and
`nn.Linear` knows them, and their parameters stay the same objects. The kept layers hold the integers
themselves: `weight` int8, or packed bytes (out, ...) for 4 bits and fewer, with a scale per output channel, `bias`
int32 on the grid of the products.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.masks import MARK, hold_zeros
from compress_quantize.affine import (
    BIAS_HIGHEST,
    BIAS_LOWEST,
    WEIGHT_HIGHEST,
    WEIGHT_LOWEST,
    fake_quantize_weight,
    per_channel,
    quantize,
    stretch,
)
from compress_quantize.folding import Integers, Normalization, fold, with_integer_bias
from compress_quantize.learned_step import LearnedStep, fake_quantize_learned, initial_weight_step, new_quantizer
from compress_quantize.observers import ActivationQuantizer, Quantizer
from compress_quantize.observing import Observing
from compress_quantize.packing import LARGEST, pack, packed_columns, unpack
from compress_quantize.weight_grids import WeightGrid

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class Training(nn.Module):
    """What the training layers share."""

    source: str | None
    """Path of the quantizer on the edge to the input; None if the layer has one of its own."""
    norm: str | None
    """Path of the BatchNorm that will be folded into it."""
    rectified: bool
    """Whether a ReLU is right behind it and its BatchNorm."""
    reader: str | None
    """Path of the only layer that reads it, if a multiple of each channel reaches it as that multiple."""
    first_shape: torch.Size
    """The shape of the weight before any channel was pruned."""
    grid: WeightGrid
    """The integers of its weight, and how their steps are chosen."""
    fixed_scale: Tensor | None
    """The steps (out,) of its weight if something has chosen them for good; else they follow the weight."""
    learned: LearnedStep | None
    """The steps of its weight, if training learns them."""

    def weight_scale(self) -> Tensor:
        """The steps (out,) of its weight as it is now."""
        weight = self.get_parameter("weight")
        if self.fixed_scale is not None:
            return self.fixed_scale
        return self.grid.scale(weight) if self.learned is None else self.learned.step().detach().expand(len(weight))

    def rounded_weight(self) -> Tensor:
        """Its weight on its grid, with the gradient of LSQ if its steps are learned, else straight through."""
        weight = self.get_parameter("weight")
        if self.learned is not None and self.fixed_scale is None:
            return fake_quantize_learned(weight, self.learned, self.grid)
        return fake_quantize_weight(weight, self.weight_scale(), self.grid.highest)

    def narrow_out(self, kept: Tensor) -> None:
        """Keep the steps of these output channels only; pruning calls it."""
        if self.fixed_scale is not None:
            self.fixed_scale = self.fixed_scale[kept]
        if self.learned is not None:
            self.learned.narrow(kept)


class TrainingLinear(Training, nn.Linear):
    """A linear layer with a fake-quantized weight."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(_quantized_input(self, input), self.rounded_weight(), self.bias)


class TrainingConv1d(Training, nn.Conv1d):
    """A convolution with a fake-quantized weight."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, L) -> (N, out, L')."""
        found: Tensor = self._conv_forward(_quantized_input(self, input), self.rounded_weight(), self.bias)
        return found


class TrainingConv2d(Training, nn.Conv2d):
    """A convolution with a fake-quantized weight."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        found: Tensor = self._conv_forward(_quantized_input(self, input), self.rounded_weight(), self.bias)
        return found


class TrainingConv3d(Training, nn.Conv3d):
    """A convolution with a fake-quantized weight."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, D, H, W) -> (N, out, D', H', W')."""
        found: Tensor = self._conv_forward(_quantized_input(self, input), self.rounded_weight(), self.bias)
        return found


TRAINING: dict[type[nn.Module], type[Training]] = {
    nn.Linear: TrainingLinear,
    nn.Conv1d: TrainingConv1d,
    nn.Conv2d: TrainingConv2d,
    nn.Conv3d: TrainingConv3d,
}
"""The training layer of each type that can be quantized; subclasses have a forward of their own and cannot."""


def _quantized_input(layer: nn.Module, x: Tensor) -> Tensor:
    quantizer = layer._modules.get("input_quantizer")
    found: Tensor = x if quantizer is None else quantizer(x)
    return found


def respond(layer: Training, x: Tensor, weight: Tensor) -> Tensor:
    """What a layer gives for an input as it is, with this weight (out, ...) in the place of its own."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    found: Tensor = layer._conv_forward(x, weight, layer.bias)
    return found


def make_trainable(
    layer: nn.Module,
    *,
    source: str | None,
    norm: str | None,
    observing: Observing = Observing(),  # noqa: B008 - frozen
    grid: WeightGrid = WeightGrid(),  # noqa: B008 - frozen
    learned: bool = False,
) -> None:
    """Turn a layer of torch into its training layer, in place: parameters, marks and hooks stay.

    Args:
        layer: of a type in `TRAINING`.
        source: path of the quantizer on the edge to its input; None gives the layer a quantizer of its own.
        norm: path of the BatchNorm that will be folded into it.
        observing: how the layer's own quantizer finds its range.
        grid: the integers of its weight, and how their steps are chosen.
        learned: whether training learns the steps of its weight, and of what it reads.
    """
    layer.__class__ = TRAINING[type(layer)]
    assert isinstance(layer, Training)
    layer.source, layer.norm, layer.first_shape = source, norm, layer.get_parameter("weight").shape
    layer.grid, layer.fixed_scale = grid, None
    layer.rectified, layer.reader = False, None
    own = new_quantizer(observing, learned=learned).train(layer.training) if source is None else None
    layer.register_module("input_quantizer", own)
    steps = LearnedStep(initial_weight_step(layer.get_parameter("weight"), grid)) if learned else None
    layer.register_module("learned", steps)


class _Kept(nn.Module):
    """What the kept layers share."""

    GEOMETRY: ClassVar[tuple[str, ...]]
    """The names of the constructor's arguments, without `bias`."""
    weight: nn.Parameter
    bias_scale: Tensor
    bits: int
    """The width of the weight's integers."""
    shape: tuple[int, ...]
    """The shape of the weight; packed, its rows lie in bytes."""
    scale: Tensor
    """(out,), that of the integers that kernels read."""

    def _hold(self, shape: tuple[int, ...], bias: bool, bits: int) -> None:
        outputs = shape[0]
        self.bits, self.shape = bits, shape
        columns = packed_columns(torch.Size(shape[1:]).numel(), bits)
        held = (
            torch.zeros(outputs, columns, dtype=torch.uint8) if self._packed else torch.zeros(shape, dtype=torch.int8)
        )
        self.weight = nn.Parameter(held, requires_grad=False)
        self.register_buffer("scale", torch.ones(outputs))
        if bias:
            self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.int32), requires_grad=False)
            self.register_buffer("bias_scale", torch.ones(outputs))
        else:
            self.register_parameter("bias", None)
        self.register_module("input_quantizer", None)

    @property
    def _packed(self) -> bool:
        return self.bits <= LARGEST

    def kernel_integers(self) -> Tensor:
        """The weight (out, ...) as kernels read it, int8: its integers times what 8 bits leave room for."""
        if not self._packed:
            return self.weight
        columns = torch.Size(self.shape[1:]).numel()
        return unpack(self.weight, self.bits, columns, stretch(self.bits)).reshape(self.shape)

    def integers(self) -> Tensor:
        """The integers of the weight (out, ...), int8."""
        return self.kernel_integers() // stretch(self.bits)

    @torch.no_grad()
    def hold_integers(self, integers: Tensor, scale: Tensor) -> None:
        """Take integers (out, ...) of any type, with their scale (out,), for the weight."""
        finer = stretch(self.bits)
        self.weight.copy_(pack(integers.flatten(1), self.bits) if self._packed else integers * finer)
        self.scale.copy_(scale / finer)

    def real_weight(self) -> Tensor:
        """The weight (out, ...) as real numbers.

        Its zero points are zeros, and are given all the same: without them in an exported file, onnxruntime
        computes linear layers in float.
        """
        zero_point = torch.zeros(len(self.scale), dtype=torch.int8, device=self.scale.device)
        return _dequantize(self.kernel_integers(), self.scale, zero_point, WEIGHT_LOWEST, WEIGHT_HIGHEST)

    def real_bias(self) -> Tensor | None:
        """The bias (out,) as real numbers."""
        return None if self.bias is None else _dequantize(self.bias, self.bias_scale, None, BIAS_LOWEST, BIAS_HIGHEST)

    def stands_for(self) -> dict[str, Tensor]:
        """The real weight, where bytes hold several integers; the core counts it in their place."""
        return {"weight": self.real_weight()} if self._packed else {}

    @torch.no_grad()
    def reopened(self, shared: dict[int, nn.Parameter]) -> nn.Module:
        """The layer of torch with the numbers that the integers stand for, ready to train; it shares no weight."""
        arguments = {name: value for name, value in self.arguments().items() if name != "bits"}
        kind = next(real for real, kept in _KINDS.items() if kept is type(self))
        layer: nn.Module = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            kind, **arguments, device=self.weight.device
        )
        layer.get_parameter("weight").copy_(self.real_weight())
        if (bias := self.real_bias()) is not None:
            layer.get_parameter("bias").copy_(bias)
        for tensor in vars(self).get(MARK, ()):
            hold_zeros(layer, tensor)
        return layer.train(self.training)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        found = {**{name: getattr(self, name) for name in self.GEOMETRY}, "bias": self.bias is not None}
        return found if self.bits == 8 else found | {"bits": self.bits}

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())


def _dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor | None, lowest: int, highest: int) -> Tensor:
    found: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
        integers, scale, zero_point, 0, lowest, highest, integers.dtype
    )
    return found


class QuantizedLinear(_Kept):
    """A linear layer that holds integers."""

    GEOMETRY = ("in_features", "out_features")

    def __init__(self, in_features: int, out_features: int, bias: bool = True, bits: int = 8) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._hold((out_features, in_features), bias, bits)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(_quantized_input(self, input), self.real_weight(), self.real_bias())


class _QuantizedConv(_Kept):
    """A convolution over one to three axes."""

    GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int = 1,
        bias: bool = True,
        bits: int = 8,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.groups = dilation, groups
        self._hold((out_channels, in_channels // groups, *kernel_size), bias, bits)


class QuantizedConv1d(_QuantizedConv):
    """A convolution over one axis that holds integers."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, L) -> (N, out, L')."""
        x, weight, bias = _quantized_input(self, input), self.real_weight(), self.real_bias()
        return F.conv1d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class QuantizedConv2d(_QuantizedConv):
    """A convolution over two axes that holds integers."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        x, weight, bias = _quantized_input(self, input), self.real_weight(), self.real_bias()
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class QuantizedConv3d(_QuantizedConv):
    """A convolution over three axes that holds integers."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, D, H, W) -> (N, out, D', H', W')."""
        x, weight, bias = _quantized_input(self, input), self.real_weight(), self.real_bias()
        return F.conv3d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


_KINDS: dict[type[nn.Module], type[_Kept]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
}
KEPT: tuple[type[_Kept], ...] = tuple(_KINDS.values())


@torch.no_grad()
def freeze(layer: Training, input_scale: Tensor, norm: Normalization | None) -> _Kept:
    """The kept layer of a training layer, with the normalization behind it folded in, on the layer's device.

    Args:
        layer: a training layer.
        input_scale: (), the scale of its input.
        norm: what the BatchNorm behind it does, if there is one.
    """
    assert isinstance(layer, Layer)
    found, bias_scale = integers_of(layer, input_scale, norm)
    kept = _empty(layer, bias=found.bias is not None)
    kept.hold_integers(found.weight, found.scale)
    if found.bias is not None:
        kept.bias.copy_(found.bias)
        kept.bias_scale.copy_(bias_scale)
    return kept.to(layer.weight.device).train(layer.training)


def integers_of(layer: Layer, input_scale: Tensor, norm: Normalization | None) -> tuple[Integers, Tensor]:
    """A layer's integers and the scale of its bias (out,), on the processor, as `input_scale` and `norm` are."""
    assert isinstance(layer, Training)
    weight, scale = layer.weight.detach().cpu(), layer.weight_scale().cpu()
    integers = quantize(weight, per_channel(scale, weight.ndim), 0, -layer.grid.highest, layer.grid.highest)
    found = Integers(integers, scale, None if layer.bias is None else layer.bias.detach().cpu())
    return with_integer_bias(found if norm is None else fold(found, norm), input_scale, stretch(layer.grid.bits))


def _empty(layer: Layer, *, bias: bool) -> _Kept:
    assert isinstance(layer, Training)
    bits = layer.grid.bits
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(layer.in_features, layer.out_features, bias, bits)
    kind = next(kept for real, kept in _KINDS.items() if isinstance(layer, real))
    assert issubclass(kind, _QuantizedConv)
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=bias,
        bits=bits,
    )


def quantizer_of(observer: ActivationQuantizer) -> Quantizer:
    """The quantizer that an observer becomes."""
    scale, zero_point = observer.grid()
    bits = observer.observing.levels.bit_length()
    return Quantizer(float(scale), int(zero_point), bits).train(observer.training)
