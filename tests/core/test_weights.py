"""Which parameters are weights, and which are shared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress_core.weights import NORMS, shared_parameters, weights


class Odd(nn.Module):
    """Parameters of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.rows_bias = nn.Parameter(torch.zeros(2, 4))
        self.integers = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
        self.norm = nn.LayerNorm((2, 4))
        self.conv = nn.Conv1d(4, 4, 3)
        self.register_parameter("none", None)


def test_weights_have_two_axes_and_are_neither_norms_nor_biases_nor_integers():
    assert [place.name for place in weights(Odd())] == ["token", "conv.weight"]


def test_the_lengths_of_weight_normalization_are_no_weights():
    new = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(4, 3))
    assert [place.name for place in weights(new)] == ["parametrizations.weight.original1"]
    assert [place.name for place in weights(old)] == ["weight_v"]


def test_every_kind_of_norm_is_one():
    norms = [nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)]
    assert all(isinstance(norm, NORMS) for norm in (*norms, nn.LayerNorm(4), nn.RMSNorm(4)))
    assert not isinstance(nn.PReLU(), NORMS)


def tied() -> nn.Module:
    """Two modules with one weight, and one module in two places."""
    model = nn.Module()
    model.embed, model.head = nn.Embedding(6, 4), nn.Linear(4, 6)
    model.head.weight = model.embed.weight
    model.first = model.second = nn.Linear(4, 4)
    return model


def test_a_shared_weight_is_listed_once_and_left_when_one_owner_is_skipped():
    model = tied()
    assert [place.name for place in weights(model)] == ["embed.weight", "first.weight"]
    assert [place.name for place in weights(model, [model.head])] == ["first.weight"]
    place = weights(model)[0]
    assert (place.module, place.tensor, place.parameter) == (model.embed, "weight", model.head.weight)
    assert [place.name for place in weights(nn.Linear(2, 3))] == ["weight"]


def test_a_parameter_is_shared_by_two_modules_or_by_two_places_of_one():
    several = {"embed.weight", "head.weight"}
    assert shared_parameters(tied(), whole_modules=False) == several
    assert shared_parameters(tied()) == several | {
        f"{path}.{tensor}" for path in ("first", "second") for tensor in ("weight", "bias")
    }
    assert shared_parameters(nn.Linear(2, 3)) == set()
