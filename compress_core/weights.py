"""Which parameters of a network are weights, which layers are norms, and which parameters are shared.

Weights are what techniques clip, prune and keep small: floating-point parameters of two or more axes, none of them
empty, that belong to no norm, are no bias and no lengths of weight normalization.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

NORMS: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers that normalize; their `weight`, if they have one, scales what passes."""


@dataclass(frozen=True)
class Place:
    """A parameter, by the module that holds it and the name that it has there."""

    path: str
    module: nn.Module
    tensor: str
    parameter: nn.Parameter

    @property
    def name(self) -> str:
        """The qualified name of the parameter."""
        return f"{self.path}.{self.tensor}" if self.path else self.tensor


def weights(model: nn.Module, skip: Iterable[nn.Module] = ()) -> list[Place]:
    """The weights of a network, in the order of its modules.

    A shared weight is listed once, and not at all if one of its owners is in `skip`.
    """
    seen = {id(parameter) for module in skip for parameter in module.parameters(recurse=False)}
    found = []
    for place in _places(model):
        parameter = place.parameter
        if isinstance(place.module, NORMS) or "bias" in place.tensor or _is_length(place) or id(parameter) in seen:
            continue
        if parameter.ndim >= 2 and parameter.is_floating_point() and parameter.numel():
            seen.add(id(parameter))
            found.append(place)
    return found


def shared_parameters(model: nn.Module, *, whole_modules: bool = True) -> set[str]:
    """All names of the parameters that have several.

    Args:
        model: the network.
        whole_modules: whether those of one module in several places count; else only those of several modules.
    """
    owners: dict[int, dict[str, tuple[int, str]]] = {}
    for place in _places(model):
        owners.setdefault(id(place.parameter), {})[place.name] = (id(place.module), place.tensor)
    return {
        name for names in owners.values() if len(names if whole_modules else set(names.values())) > 1 for name in names
    }


def _is_length(place: Place) -> bool:
    """Whether a parameter is the g of weight normalization, w = g v / |v|: one number per row, in the axes of v."""
    module = place.module
    if isinstance(module, ParametrizationList):
        return place.tensor == "original0" and isinstance(module[0], _WeightNorm)
    return place.tensor.endswith("_g") and f"{place.tensor[:-1]}v" in module._parameters


def _places(model: nn.Module) -> Iterator[Place]:
    """Every parameter under each of its names."""
    for path, module in model.named_modules(remove_duplicate=False):
        for tensor, parameter in module._parameters.items():
            if parameter is not None:
                yield Place(path, module, tensor, parameter)
