"""Layers whose weight is kept as codes. The bias stays real.

`weight` gives the real numbers anew at every call, so everything that reads a layer's weight can read it here, and
memory holds the codes. An exported file holds the codes too and is decoded by its runtime.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_codes.coded import CodedTensor
from compress_core.forwards import convolve_transposed
from compress_core.masks import MARK, hold_zeros

Sizes = tuple[int, ...]


class CodedLayer(nn.Module):
    """What the kept layers with one weight share."""

    GEOMETRY: ClassVar[tuple[str, ...]]
    """The names of the constructor's arguments, without `bias`."""
    REAL: ClassVar[type[nn.Module]]
    """The layer of torch that it stands for."""
    coded: CodedTensor
    bias: nn.Parameter | None

    def _hold(self, outputs: int, bias: bool) -> None:
        self.register_module("coded", None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None)

    @property
    def weight(self) -> Tensor:
        """The weight as real numbers."""
        found: Tensor = self.coded()
        return found

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        found = {name: getattr(self, name) for name in self.GEOMETRY}
        return found if "bias" not in self._parameters else found | {"bias": self.bias is not None}

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())

    def coded_tensors(self) -> dict[str, CodedTensor]:
        """What it keeps as codes, by the names that the tensors have in torch's layer."""
        return {"weight": self.coded}

    @torch.no_grad()
    def reopened(self, shared: dict[int, nn.Parameter]) -> nn.Module:
        """The layer of torch with the numbers that the codes stand for, ready to train.

        Args:
            shared: the weights that are real again, by the `id` of their codes; layers with the same codes share one.
        """
        weight = self.weight
        layer: nn.Module = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            self.REAL, **self.arguments(), device=weight.device
        )
        layer.get_parameter("weight").copy_(weight)
        layer.register_parameter("weight", shared.setdefault(id(self.coded.codes), layer.get_parameter("weight")))
        if self._parameters.get("bias") is not None:
            layer.get_parameter("bias").copy_(self.get_parameter("bias"))
        for tensor in vars(self).get(MARK, ()):
            hold_zeros(layer, tensor)
        return layer.train(self.training)


class CodedLinear(CodedLayer):
    """A linear layer with a coded weight."""

    GEOMETRY = ("in_features", "out_features")
    REAL = nn.Linear

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._hold(out_features, bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(input, self.weight, self.bias)


class CodedEmbedding(CodedLayer):
    """A table of rows that are kept as codes."""

    GEOMETRY = ("num_embeddings", "embedding_dim", "padding_idx")
    REAL = nn.Embedding

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.register_module("coded", None)

    def forward(self, input: Tensor) -> Tensor:
        """(...) -> (..., embedding_dim)."""
        return F.embedding(input, self.weight, self.padding_idx)


class CodedConv(CodedLayer):
    """A convolution with a coded weight, of any number of axes."""

    GEOMETRY = (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
        "padding_mode",
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        *,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        groups: int = 1,
        padding_mode: str = "zeros",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.groups, self.padding_mode = dilation, groups, padding_mode
        self._hold(out_channels, bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, ...) -> (N, out, ...)."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._around(), mode=self.padding_mode)
            padding = (0,) * len(self.kernel_size)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        found: Tensor = convolve(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
        )
        return found

    def _around(self) -> list[int]:
        """What is padded before and after each axis, the last axis first, as F.pad wants it."""
        if isinstance(self.padding, str):
            spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            sides = [(span // 2, span - span // 2) if self.padding == "same" else (0, 0) for span in spans]
        else:
            sides = [(side, side) for side in self.padding]
        return [side for pair in reversed(sides) for side in pair]


class CodedConv1d(CodedConv):
    """A convolution over one axis with a coded weight."""

    REAL = nn.Conv1d


class CodedConv2d(CodedConv):
    """A convolution over two axes with a coded weight."""

    REAL = nn.Conv2d


class CodedConv3d(CodedConv):
    """A convolution over three axes with a coded weight."""

    REAL = nn.Conv3d


class CodedConvTranspose(CodedLayer):
    """A transposed convolution with a coded weight (in, out / groups, ...), of any number of axes."""

    GEOMETRY = (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "dilation"),
        "groups",
    )

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
        self._hold(out_channels, bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, in, ...) -> (N, out, ...)."""
        return convolve_transposed(self, input, self.weight, output_size)


class CodedConvTranspose1d(CodedConvTranspose):
    """A transposed convolution over one axis with a coded weight."""

    REAL = nn.ConvTranspose1d


class CodedConvTranspose2d(CodedConvTranspose):
    """A transposed convolution over two axes with a coded weight."""

    REAL = nn.ConvTranspose2d


class CodedConvTranspose3d(CodedConvTranspose):
    """A transposed convolution over three axes with a coded weight."""

    REAL = nn.ConvTranspose3d


KEPT: tuple[type[CodedLayer], ...] = (
    *(CodedLinear, CodedEmbedding, CodedConv1d, CodedConv2d, CodedConv3d),
    *(CodedConvTranspose1d, CodedConvTranspose2d, CodedConvTranspose3d),
)


@torch.no_grad()
def kept_layer(layer: nn.Module, kind: type[nn.Module], coded: CodedTensor) -> CodedLayer:
    """The kept layer of a layer of torch, of a subclass of `kind`, with its bias and marks."""
    (form,) = (entry for entry in KEPT if entry.REAL is kind)
    bias = layer._parameters.get("bias")
    arguments = {name: getattr(layer, name) for name in form.GEOMETRY}
    kept = form(**arguments, **({} if kind is nn.Embedding else {"bias": bias is not None}))
    kept.to(coded.codes.device)
    kept.coded = coded
    if bias is not None:
        kept.get_parameter("bias").copy_(bias)
    for tensor in vars(layer).get(MARK, ()):
        hold_zeros(kept, tensor)
    return kept.train(layer.training)
