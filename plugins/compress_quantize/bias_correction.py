"""Bias correction: the mean of each output channel is what it was before rounding.

    b' = b + E[W x] - E[W' x']

x is what the layer reads in the real network and x' what it reads behind rounded layers whose biases are corrected
already; both means are taken over the calibration batches, layer by layer in the order of the forward. A removed bias
stays zero.

Sources: Nagel et al. 2019, Data-Free Quantization, sec. 4.2 and appendix D (empirical correction); Banner et al.
2019, Post Training 4-bit Quantization, sec. 3.3. Cost: a forward up to each layer for each batch, twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from compress_core.masks import MARK
from compress_quantize.layerwise import Forward, mean_outputs


@torch.no_grad()
def correct_biases(model: nn.Module, real: nn.Module, calls: Mapping[str, int], forwards: Sequence[Forward]) -> int:
    """Correct the biases of layers, in place; returns how many there are.

    Args:
        model: the network that rounds.
        real: the same with real numbers.
        calls: how often each layer is called, in order.
        forwards: run a network on each calibration batch.
    """
    for path, count in calls.items():
        layer = model.get_submodule(path)
        wanted, given = (mean_outputs(network, path, forwards, calls=count) for network in (real, model))
        shift = (wanted - given).to(layer.get_parameter("weight").dtype)
        bias = layer._parameters.get("bias")
        trains = layer.get_parameter("weight").requires_grad
        corrected = shift if bias is None else bias + shift
        if bias is not None and "bias" in vars(layer).get(MARK, ()):
            corrected[bias == 0] = 0
        layer.bias = nn.Parameter(corrected, requires_grad=trains)
    return len(calls)
