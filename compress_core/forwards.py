"""torch's forwards for layers whose weights are made anew at every call, from integers or codes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def convolve_transposed(layer: Any, input: Tensor, weight: Tensor, output_size: list[int] | None = None) -> Tensor:
    """What a transposed convolution over one to three axes gives with this weight.

    Args:
        layer: with the bias and the geometry, named as torch names them.
        input: (N, in, ...).
        weight: (in, out / groups, ...).
        output_size: as torch's forward takes it.
    """
    axes = len(layer.kernel_size)
    beyond = nn.modules.conv._ConvTransposeNd._output_padding(
        layer, input, output_size, layer.stride, layer.padding, layer.kernel_size, axes, layer.dilation
    )
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    return convolve(input, weight, layer.bias, layer.stride, layer.padding, beyond, layer.groups, layer.dilation)


class TensorsOfTheMoment(nn.RNNBase):
    """A recurrent layer with torch's forward, which reads `_flat_weights`: here a new list at every call."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor | None:
        """The tensor of that name as it is now."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [self.tensor(name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: object) -> None:
        """Nothing: torch's own methods set what is made anew here."""
