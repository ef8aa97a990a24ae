"""Which layers of a network may be factorized, where they compute, and putting the pieces in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compress_core.errors import ModelError
from compress_core.masks import MARK
from compress_core.modes import unfused
from compress_core.run import Run
from compress_core.weights import shared_parameters
from compress_factorize.methods import BY_TYPE
from compress_factorize.pieces import Area, Layer


@dataclass(frozen=True)
class Found:
    """The layers that may be factorized, and the others by the reason why not."""

    layers: dict[str, Layer] = field(default_factory=dict)
    areas: dict[str, Area] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, path: str, reason: str) -> None:
        """Note that a layer stays."""
        self.left.setdefault(reason, []).append(path)

    def is_left(self, path: str) -> bool:
        """Whether it was noted that a layer stays."""
        return any(path in paths for paths in self.left.values())


def find_layers(model: nn.Module, run: Run, skipped: Mapping[str, nn.Module]) -> Found:
    """Look through a network, running two examples to see where its layers compute.

    Raises:
        ModelError: a weight is not finite.
    """
    found = Found()
    fit: dict[str, Layer] = {}
    shared = shared_parameters(model)
    for path, module in model.named_modules():
        if path in skipped or not _holds_weights(module) or _is_inside_attention(model, path):
            continue
        if (reason := _unfit(path, module, shared)) is not None:
            found.leave(path, reason)
        elif isinstance(module, Layer):
            _refuse_no_numbers(path, module)
            fit[path] = module
    areas = _areas(model, run, fit)
    for path, layer in fit.items():
        if path not in areas:
            found.leave(path, "gets no input")
        else:
            found.layers[path], found.areas[path] = layer, areas[path]
    return found


def put(model: nn.Module, path: str, pieces: nn.Module) -> nn.Module:
    """Put the pieces in the place of a layer; the result is another object if the layer was the network."""
    if not path:
        return pieces
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, pieces)
    return model


def _refuse_no_numbers(path: str, layer: Layer) -> None:
    if not torch.isfinite(layer.weight).all():
        raise ModelError("its weight is not finite", where=path, mend="train again with a smaller learning rate")


def _holds_weights(module: nn.Module) -> bool:
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


def _is_inside_attention(model: nn.Module, path: str) -> bool:
    """Whether it belongs to an attention module, which is named as a whole."""
    return bool(path) and isinstance(model.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention)


def _unfit(path: str, module: nn.Module, shared: set[str]) -> str | None:
    """Why a module that holds weights cannot be replaced."""
    if type(module) not in BY_TYPE:
        return f"{type(module).__name__} is not factorized"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "has groups"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "rescales its rows"
    if any((f"{path}.{name}" if path else name) in shared for name in module._parameters):
        return "shares its weight"
    if getattr(module, MARK, ()):
        return "has removed weights"
    assert isinstance(module, Layer)
    if not module.weight.any():
        return "is all zeros"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has hooks"
    return None


def _areas(model: nn.Module, run: Run, layers: Mapping[str, Layer]) -> dict[str, Area]:
    """Where each layer computes, on two examples; a layer whose forward gets no tensor has none."""
    with unfused():
        features = run.features(model, layers, run.calibration(size=2, limit=1))
    return {
        path: _area(layers[path], [entry[0] for entry in found.inputs], found.outputs)
        for path, found in features.items()
        if found.inputs and all(found.inputs)
    }


def _area(layer: Layer, inputs: list[Tensor], outputs: list[Tensor]) -> Area:
    width = layer.weight.shape[1 if isinstance(layer, nn.Embedding) else 0]
    after = [output.numel() // width for output in outputs]
    if not isinstance(layer, nn.Conv2d):
        return Area(sum(after), sum(after), sum(after))
    between = [count // output.shape[-1] * x.shape[-1] for count, x, output in zip(after, inputs, outputs, strict=True)]
    return Area(sum(x.numel() // layer.in_channels for x in inputs), sum(after), sum(between))
