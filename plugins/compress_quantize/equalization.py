"""Cross-layer equalization: the channels between two layers get the same range in both.

    W1' = S^-1 W1,   b1' = S^-1 b1,   W2' = W2 S,   s_i = sqrt(r1_i r2_i) / r2_i               (eq. 11)

r1_i is the largest magnitude among the weights that make channel i and r2_i among those that read it; afterwards
both are sqrt(r1_i r2_i). What stands between the layers takes a multiple to the same multiple (ReLU, pools), so the
network computes what it did. Chains are gone over until no s_i moves. Worth it where layers have one step for all
channels, and where channels differ by orders of magnitude, as behind folded BatchNorms of depthwise convolutions.

Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, sec. 4.1.
Cost: some passes over the weights; no data.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress_quantize.affine import per_channel

ROUNDS = 40
"""The most passes over all pairs."""
SETTLED = 1e-4
"""The largest change of a scale, as a share of it, at which they end."""
WIDEST = 1e4
"""The largest factor that a channel gets at once."""


def output_ranges(weight: Tensor) -> Tensor:
    """The largest magnitude (out,) among the weights (out, ...) of each output channel."""
    return weight.abs().reshape(len(weight), -1).amax(1)


def input_ranges(weight: Tensor, channels: int, groups: int = 1) -> Tensor:
    """The largest magnitude (channels,) among the weights that read each channel.

    Args:
        weight: (out, channels / groups, ...), or (out, channels * n) behind a flatten.
        channels: how many there are.
        groups: of the layer.
    """
    return _by_channel(weight, channels, groups).abs().amax((1, 3)).flatten()


def _by_channel(weight: Tensor, channels: int, groups: int) -> Tensor:
    """(groups, out / groups, channels / groups, weights)."""
    return weight.reshape(groups, len(weight) // groups, channels // groups, -1)


def factors(first: Tensor, second: Tensor) -> Tensor:
    """S of ranges r1 (channels,) and r2 (channels,); 1 where either is zero."""
    found = (first * second).sqrt() / second
    usable = (first > 0) & (second > 0) & torch.isfinite(found) & (found > 0)
    return torch.where(usable, found, torch.ones_like(found)).clamp(1 / WIDEST, WIDEST)


@torch.no_grad()
def equalize(layers: Mapping[str, nn.Module], readers: Mapping[str, str]) -> int:
    """Equalize each layer and the one that reads it, in place; returns how many pairs there are.

    Args:
        layers: linear layers and convolutions, by path, with their BatchNorms folded.
        readers: for the path of a layer, the path of the only layer that reads it.
    """
    pairs = [(layers[one], layers[other]) for one, other in readers.items() if _fit(layers[one], layers[other])]
    for _ in range(ROUNDS):
        if max((_equalize_pair(*pair) for pair in pairs), default=0.0) < SETTLED:
            break
    return len(pairs)


def _fit(first: nn.Module, second: nn.Module) -> bool:
    weight, channels = second.get_parameter("weight"), len(first.get_parameter("weight"))
    inputs = weight.shape[1] * _groups(second)
    return inputs == channels or (weight.ndim == 2 and inputs % channels == 0)


def _groups(layer: nn.Module) -> int:
    groups: int = getattr(layer, "groups", 1)
    return groups


def _equalize_pair(first: nn.Module, second: nn.Module) -> float:
    """The largest change of a range, as a share of it."""
    own, other, groups = first.get_parameter("weight"), second.get_parameter("weight"), _groups(second)
    scale = factors(output_ranges(own), input_ranges(other, len(own), groups))
    own.div_(per_channel(scale, own.ndim))
    if first._parameters.get("bias") is not None:
        first.get_parameter("bias").div_(scale)
    columns = _by_channel(other, len(own), groups) * scale.reshape(groups, 1, -1, 1)
    other.copy_(columns.reshape(other.shape))
    return float((scale - 1).abs().max())
