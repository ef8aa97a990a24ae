"""From a network with quantizers on its edges to one that holds integers, and from there back to real numbers.

`hold_integers` replaces the training layers by layers of integers, folds BatchNorm into them and fixes every
quantizer. `hold_reals` puts ordinary layers in their places; what was folded stays folded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from compress_core.attention import Attention, pack
from compress_core.errors import ModelError
from compress_core.masks import MARK, hold_zeros
from compress_quantize.converting import quantizers
from compress_quantize.folding import Normalization
from compress_quantize.graph import Graph, without
from compress_quantize.layers import Training, freeze, quantizer_of
from compress_quantize.observers import ActivationQuantizer, Quantizer
from compress_quantize.weight_only import hold, planned


def hold_integers(model: nn.Module) -> tuple[nn.Module, int, int]:
    """Replace training layers and quantizers by those that are kept; counts the layers and the folded BatchNorms.

    Raises:
        ModelError: the values on an edge were not finite, or the edge is not there any more.
    """
    grids = {path: _grid(path, quantizer) for path, quantizer in quantizers(model).items()}
    new: dict[int, nn.Module] = {}
    norms: set[str] = set()
    layers = 0
    for path, layer in model.named_modules():
        if not isinstance(layer, Training):
            continue
        source = layer.source if layer.source is not None else f"{path}.input_quantizer".lstrip(".")
        if source not in grids:
            raise ModelError(
                f"another technique of this step has taken out {source!r}, whose scale {path!r} was trained with",
                mend="quantize in a step of its own, after this one",
            )
        norm = None
        if layer.norm is not None:
            folded = model.get_submodule(layer.norm)
            norm = normalization_of(folded)
            new[id(folded)] = nn.Identity().train(folded.training)
            norms.add(layer.norm)
        kept = freeze(layer, torch.tensor(grids[source].scale), norm)
        _keep_marks(layer, kept)
        kept.register_module("input_quantizer", grids[source] if layer.source is None else None)
        new[id(layer)] = kept
        layers += 1
    new |= {id(quantizer): grids[path] for path, quantizer in quantizers(model).items()}
    replace_modules(model, new)
    return new.get(id(model), model), layers, len(norms)


def hold_weights(model: nn.Module) -> tuple[nn.Module, int]:
    """Replace the layers whose weights alone become integers; returns how many there were."""
    new: dict[int, nn.Module] = {}
    for path, layer in planned(model).items():
        if not all(torch.isfinite(tensor).all() for tensor in layer.parameters()):
            raise ModelError("its weights are not finite", where=path, mend="train again, or leave it out with `skip`")
        new[id(layer)] = hold(layer)
    replace_modules(model, new)
    return new.get(id(model), model), len(new)


def _keep_marks(old: nn.Module, new: nn.Module) -> None:
    """Removed weights stay removed: their marks move on to the new layer."""
    for tensor in vars(old).get(MARK, ()):
        hold_zeros(new, tensor)


def _grid(path: str, observer: ActivationQuantizer) -> Quantizer:
    if not observer.observed:
        raise ModelError(
            "no calibration batch reaches it", where=path, mend="leave its layer out with `skip`, or give more data"
        )
    if not (torch.isfinite(observer.low) and torch.isfinite(observer.high)):
        raise ModelError(
            "the values that pass are not finite",
            where=path,
            mend="look for NaN or infinity in the weights and the data",
        )
    return quantizer_of(observer)


def normalization_of(norm: nn.Module) -> Normalization:
    """What a BatchNorm does, on the processor."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.cpu(), norm.running_var.cpu()
    return Normalization(
        mean,
        variance,
        norm.weight.detach().cpu() if norm.affine else torch.ones_like(mean),
        norm.bias.detach().cpu() if norm.affine else torch.zeros_like(mean),
        norm.eps,
    )


def replace_modules(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put new modules in the places of old ones, known by `id`, wherever they stand."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in new:
                parent._modules[name] = new[id(child)]


def hold_reals(model: nn.Module) -> tuple[nn.Module, int]:
    """Ordinary layers again for those of integers, without quantizers; returns how many there were.

    Layers of other plugins become real too, if they have the method `reopened`.
    """
    new: dict[int, nn.Module] = {}
    shared: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if callable(reopened := getattr(module, "reopened", None)):
            new[id(module)] = reopened(shared)
    for module in model.modules():
        if isinstance(module, Graph):
            gone = [name for name, child in module._modules.items() if isinstance(child, Quantizer)]
            module.nodes = without(module.nodes, gone)
            for name in gone:
                del module._modules[name]
    replace_modules(model, new)
    pack(model, [path for path, module in model.named_modules() if isinstance(module, Attention) and path])
    return new.get(id(model), model), len(new)
