"""What makes quantization without training better: folding, equalization, adaptive rounding, corrected biases.

The order is that of Nagel et al. 2021, A White Paper on Neural Network Quantization, fig. 8: BatchNorms are folded,
layers equalized, weights' steps and activations' ranges found, weights rounded, biases corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compress_core.errors import ModelError
from compress_core.modes import evaluating
from compress_quantize.affine import per_channel
from compress_quantize.bias_correction import correct_biases
from compress_quantize.converting import calibrate, quantizers
from compress_quantize.equalization import equalize
from compress_quantize.finishing import normalization_of, replace_modules
from compress_quantize.layers import Training, respond
from compress_quantize.layerwise import Forward, channel_axis, inputs_of, order_of_calls, real_copy
from compress_quantize.rounding import Reconstruction, adaptive_integers

EXAMPLES = 32
"""How many examples of a convolution a step of adaptive rounding sees."""
ROWS = 256
"""How many rows of a linear layer."""


@dataclass(frozen=True)
class Refinement:
    """What is done beside calibrating."""

    fold: bool = False
    equalize: bool = False
    rounding_steps: int = 0
    """Steps of adaptive rounding for each layer; 0 rounds to the nearest integers."""
    correct_bias: bool = False

    @property
    def refines(self) -> bool:
        """Whether anything is done beside folding."""
        return self.equalize or self.correct_bias or self.rounding_steps > 0

    @property
    def folds(self) -> bool:
        """Whether BatchNorms are folded before anything else."""
        return self.fold or self.refines


def quantize_after_training(
    model: nn.Module, forwards: Sequence[Forward], refinement: Refinement, seed: int
) -> tuple[int, list[str]]:
    """Calibrate a network and refine it, in place.

    Args:
        model: with training layers and quantizers.
        forwards: run a network on each calibration batch.
        refinement: what is done.
        seed: of adaptive rounding.

    Returns:
        how many BatchNorms were folded, and what to say.

    Raises:
        ModelError: the values on an edge are not finite.
    """
    said = []
    norms = fold_norms(model) if refinement.folds else 0
    if refinement.equalize:
        said.append(_equalized(model, forwards[0]))
    calibrate(model, [partial(forward, model) for forward in forwards])
    _check_finite(model)
    if not (refinement.rounding_steps or refinement.correct_bias):
        return norms, said
    real = real_copy(model)
    networks = _Networks(model, real, forwards)
    for quantizer in quantizers(model).values():
        quantizer.activate()
    with evaluating(model):
        calls = order_of_calls(model, forwards[0])
        if refinement.rounding_steps:
            lower = [
                _round_adaptively(networks, path, calls=count, steps=refinement.rounding_steps, seed=seed + index)
                for index, (path, count) in enumerate(calls.items())
            ]
            said.append(f"{sum(lower)} of {len(calls)} layers are rounded adaptively, the others are best as nearest")
        if refinement.correct_bias:
            said.append(f"the biases of {correct_biases(model, real, calls, forwards)} layers are corrected")
    return norms, said


def _check_finite(model: nn.Module) -> None:
    """Refuse values that nothing can be fitted to, before anything is."""
    for path, quantizer in quantizers(model).items():
        if not torch.isfinite(quantizer.high - quantizer.low):
            raise ModelError(
                "the values that pass while it calibrates are not finite",
                where=path,
                mend="look for NaN or infinity in the weights and the training data",
            )


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """Fold every BatchNorm into the real weights of its layer, in place; returns how many there were."""
    new: dict[int, nn.Module] = {}
    for layer in model.modules():
        if not isinstance(layer, Training) or layer.norm is None:
            continue
        norm = model.get_submodule(layer.norm)
        stored = normalization_of(norm)
        weight = layer.get_parameter("weight")
        factor = (stored.gamma / torch.sqrt(stored.variance + stored.eps)).to(weight.device)
        bias = layer._parameters.get("bias")
        shift = -stored.mean.to(weight.device) if bias is None else bias - stored.mean.to(weight.device)
        weight.mul_(per_channel(factor, weight.ndim))
        layer.bias = nn.Parameter(shift * factor + stored.beta.to(weight.device), requires_grad=weight.requires_grad)
        layer.norm = None
        new[id(norm)] = nn.Identity().train(norm.training)
    replace_modules(model, new)
    return len(new)


@torch.no_grad()
def _equalized(model: nn.Module, forward: Forward) -> str:
    layers = {path: module for path, module in model.named_modules() if isinstance(module, Training)}
    readers = {path: layer.reader for path, layer in layers.items() if layer.reader in layers and layer.reader}
    before = {path: deepcopy(layer.state_dict()) for path, layer in layers.items()}
    real = real_copy(model)
    wanted = forward(real)
    pairs = equalize(layers, readers)
    if not _same(wanted, forward(real_copy(model))):
        for path, layer in layers.items():
            layer.load_state_dict(before[path])
        return "equalization would change what the network computes: nothing is equalized"
    return f"{pairs} pairs of layers are equalized" if pairs else "no layer is read by one other alone: none equalized"


def _same(one: object, other: object) -> bool:
    match one:
        case Tensor():
            assert isinstance(other, Tensor)
            one, other = one.double(), other.double()
            finite = one[torch.isfinite(one)]
            largest = float(finite.abs().max()) if len(finite) else 0.0
            return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * largest + 1e-9, equal_nan=True)
        case dict():
            assert isinstance(other, dict)
            return all(_same(value, other[key]) for key, value in one.items())
        case list() | tuple():
            assert isinstance(other, list | tuple)
            return all(map(_same, one, other))
    return True


@dataclass(frozen=True)
class _Networks:
    """What adaptive rounding reads from."""

    rounded: nn.Module
    real: nn.Module
    forwards: Sequence[Forward]


@torch.no_grad()
def _round_adaptively(networks: _Networks, path: str, *, calls: int, steps: int, seed: int) -> bool:
    """Round the weight of a layer and fix it; returns whether it is another than the nearest."""
    layer = networks.rounded.get_submodule(path)
    assert isinstance(layer, Training)
    weight, scale, highest = layer.get_parameter("weight"), layer.weight_scale(), layer.grid.highest
    read = inputs_of(networks.rounded, path, networks.forwards, calls=calls)
    inputs = inputs_of(networks.real, path, networks.forwards, calls=calls)
    wanted = torch.cat([respond(layer, x, weight) for x in torch.split(inputs, ROWS)])
    goal = Reconstruction(partial(respond, layer), read, wanted, channel_axis(layer, wanted), layer.rectified)
    batch = ROWS if isinstance(layer, nn.Linear) else EXAMPLES
    spread = per_channel(scale, weight.ndim)
    integers = adaptive_integers(weight, spread, highest, goal, steps=steps, batch=batch, seed=seed)
    nearest = (weight / spread).round().clamp(-highest, highest)
    weight.copy_(integers * spread)
    layer.fixed_scale = scale
    return not torch.equal(integers, nearest)
