"""Constants in a network: which inputs of a layer never change, and what they add to its output.

    W (x + c) + b = W x + (b + sum over places W[:, i] * c_i)

A constant input is as good as a larger bias, if the layer sees it at every place: a convolution that pads with zeros
sees 0 at the border instead.

Source: linearity. Cost: one pass over the batches that are given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress_core.channels.cutting import blocks_of
from compress_core.modes import evaluating, unfused

if TYPE_CHECKING:
    from compress_core.data import Batch
    from compress_core.run import Run


@torch.no_grad()
def fold_constant(reader: nn.Module, constant: Tensor) -> None:
    """Add to a layer's bias what a constant input adds to its output, in place.

    Args:
        reader: a linear layer or a convolution; it gets a bias if it has none and needs one.
        constant: (in,), what each input channel is at every place.
    """
    if not bool(constant.any()):
        return
    assert isinstance(reader, nn.Linear | _ConvNd)
    assert sees_constants(reader)
    weight = reader.weight.detach().double()
    summed = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    blocks = summed.reshape(blocks_of(reader), -1, summed.shape[1])
    column = constant.to(weight.device, torch.float64).reshape(len(blocks), -1, 1)
    added = (blocks @ column).reshape(-1)
    if not bool(added.any()):
        return
    if reader.bias is None:
        reader.bias = nn.Parameter(added.to(reader.weight.dtype), requires_grad=reader.weight.requires_grad)
    else:
        reader.bias.copy_(reader.bias.double() + added)


def sees_constants(reader: nn.Module) -> bool:
    """Whether a constant input adds the same to a layer's output at every place."""
    if not isinstance(reader, _ConvNd):
        return True
    padded = reader.padding_mode == "zeros" and any(reader._reversed_padding_repeated_twice)
    return not reader.transposed and not padded


@torch.no_grad()
def input_ranges(
    model: nn.Module, paths: Collection[str], batches: Iterable[Batch], run: Run
) -> dict[str, tuple[Tensor, Tensor]]:
    """The smallest and the largest value of each input channel of layers over batches and places, in eval mode.

    Args:
        model: the network.
        paths: of linear layers and convolutions.
        batches: what is run through it.
        run: knows how.

    Returns:
        by path two tensors (in,) on the CPU; a layer that is not called is left out.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(path: str, module: nn.Module, x: Tensor) -> None:
        axis = x.ndim - 1 - (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)
        flat = x.detach().movedim(axis, 0).flatten(1) if x.ndim > 1 else x.detach()[:, None]
        low, high = flat.amin(1).cpu(), flat.amax(1).cpu()
        if path in found:
            low, high = torch.minimum(low, found[path][0]), torch.maximum(high, found[path][1])
        found[path] = (low, high)

    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, inputs, keywords, path=path: watch(path, module, (*inputs, *keywords.values())[0]),
            with_kwargs=True,
        )
        for path in sorted(paths)
    ]
    try:
        with evaluating(model), unfused():
            for batch in batches:
                run.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
