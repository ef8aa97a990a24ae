"""Regularizers: terms of the loss that keep weights small or few.

    L1          l1 * sum |w|            pulls every weight towards zero with the same force l1
    L2          l2 / 2 * sum w^2        pulls every weight with a force l2 |w|
    L1, scales  l1 * sum |gamma|        gamma: the factors of the norm layers, one per channel

The weights are the trainable parameters of two or more axes; biases, norms and scales have no such term. The
gradient of |w| at 0 is taken as 0, so a weight that is zero stays there, and one that L1 has driven to zero
comes within a learning rate of it: a technique that removes small weights or channels makes the zeros exact.
The gradient passes through the optimizer, so L2 is not its weight decay (see optimizers.py).

Source: L1: Tibshirani 1996, eq. 1; L2: Krogh & Hertz 1991, eq. 2; L1 on scales: Liu et al. 2017, Learning
Efficient Convolutional Networks through Network Slimming, eq. 1. Cost: one pass over the weights per update.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from compress_core.weights import NORMS, weights


def trainable_weights(model: nn.Module) -> list[Tensor]:
    """The weights that train, a shared one once."""
    return [place.parameter for place in weights(model) if place.parameter.requires_grad]


def scales(model: nn.Module) -> list[Tensor]:
    """The trainable factors of the norm layers, shape `(channels,)` each."""
    found = [module.weight for module in model.modules() if isinstance(module, NORMS)]
    return [weight for weight in found if isinstance(weight, nn.Parameter) and weight.requires_grad]


def l1_term(tensors: Iterable[Tensor], factor: float) -> Tensor:
    """Factor times the sum of the magnitudes, a scalar."""
    return factor * _total(tensor.abs().sum() for tensor in tensors)


def l2_term(tensors: Iterable[Tensor], factor: float) -> Tensor:
    """Half the factor times the sum of the squares, a scalar."""
    return factor / 2 * _total(tensor.square().sum() for tensor in tensors)


def l1_of_weights(model: nn.Module, factor: float) -> Tensor:
    """L1 on the weights of a network."""
    return l1_term(trainable_weights(model), factor)


def l1_of_scales(model: nn.Module, factor: float) -> Tensor:
    """L1 on the factors of its norm layers."""
    return l1_term(scales(model), factor)


def l2_of_weights(model: nn.Module, factor: float) -> Tensor:
    """L2 on the weights of a network."""
    return l2_term(trainable_weights(model), factor)


def _total(terms: Iterable[Tensor]) -> Tensor:
    found = list(terms)
    return torch.stack(found).sum() if found else torch.zeros(())
