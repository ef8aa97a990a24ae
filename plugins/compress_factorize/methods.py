"""The table of methods: how each kind of layer may be split.

To add a method, write a `Method` (a `Chain` if its layers follow one another), put it here, and add its name to
the parameter `method` of `Factorize`. A kind of layer that knows one method only gets it in `BY_TYPE`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from compress_factorize.chains import Matrix, Spatial, Tucker
from compress_factorize.cp import Cp
from compress_factorize.embeddings import Lookup
from compress_factorize.grouped import Group, Separable
from compress_factorize.narrowing import Input
from compress_factorize.pieces import Layer, Method

CONVOLUTIONS: Mapping[str, Method] = {
    "spatial": Spatial(),
    "tucker": Tucker(),
    "channel": Matrix(),
    "input": Input(),
    "cp": Cp(),
    "separable": Separable(),
    "group": Group(),
}
"""The methods for convolutions, by the name that a recipe gives."""
BY_TYPE: Mapping[type[nn.Module], Method | None] = {
    nn.Linear: Matrix(),
    nn.Conv2d: None,
    nn.Embedding: Lookup(),
}
"""The types that are factorized, with their method; None where the recipe chooses it."""


def method_of(layer: Layer, name: str) -> Method:
    """The method for a layer; a 1x1 kernel is a matrix, whatever the method."""
    if (own := BY_TYPE[type(layer)]) is not None:
        return own
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        return CONVOLUTIONS["channel"]
    return CONVOLUTIONS[name]
