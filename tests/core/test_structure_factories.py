"""A network within another is rebuilt by its own factory, which must be trusted."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from torch import nn

from compress_core.artifact import load, module_types, save
from compress_core.errors import ArtifactError
from compress_core.factory import ORIGIN, build_model
from compress_core.rebuilding import apply_edits, factories_in
from compress_core.structure import differences
from tests.support import ConvNet

MLP, CONV = "tests.support:MLP", "tests.support:ConvNet"


def nest(*members: nn.Module) -> nn.Module:
    """A registered type with whole networks in it."""
    return nn.Sequential(*members).eval()


def rebuilt(model: nn.Module) -> tuple[nn.Module, list]:
    edits = differences(model, build_model(MLP, {}), module_types())
    written = json.loads(json.dumps(edits))
    return apply_edits(build_model(MLP, {}), written, module_types()), written


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_network_remembers_its_factory_through_copies():
    model = build_model(MLP, {"width": 7})
    assert deepcopy(model).__dict__[ORIGIN] == (MLP, {"width": 7})
    assert not differences(model, build_model(MLP, {"width": 7}), module_types())


def test_networks_of_other_factories_are_rebuilt_with_their_arguments_and_edits():
    inner = build_model(CONV, {"widths": (4, 8, 8)})
    inner.stem = nn.Conv2d(1, 4, 5, 1, 2, bias=False)
    model = nest(build_model(MLP, {"width": 7}), inner)
    found, edits = rebuilt(model)
    assert list(factories_in(edits)) == [MLP, CONV]
    assert shapes(found) == shapes(model)
    assert found[1].stem.kernel_size == (5, 5)
    assert not differences(model, found, module_types())


def test_a_network_deep_within_another_one_is_found_and_must_be_trusted(tmp_path):
    outer = build_model(MLP, {})
    outer.layers[2] = nest(nn.Identity(), build_model(CONV, {}))
    edits = differences(outer, build_model(MLP, {}), module_types())
    assert list(factories_in(edits)) == [CONV]
    save(outer, tmp_path / "model", factory=MLP)
    with pytest.raises(ArtifactError, match=r"'tests\.support:ConvNet' is not trusted") as error:
        load(tmp_path / "model", factory=MLP)
    assert CONV in error.value.mend
    loaded = load(tmp_path / "model", factory=MLP, trust=[CONV])
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), outer.parameters(), strict=True))


def test_a_network_without_a_factory_is_still_refused():
    with pytest.raises(ArtifactError, match=r"'0' has the type .*ConvNet"):
        differences(nest(ConvNet()), build_model(MLP, {}), module_types())


def test_a_factory_does_not_excuse_a_root_that_another_one_should_build():
    with pytest.raises(ArtifactError, match="at the root"):
        differences(build_model(CONV, {}), build_model(MLP, {}), module_types())


def test_a_factory_that_has_changed_since_is_named():
    found = differences(nest(build_model(MLP, {"width": 7})), build_model(MLP, {}), module_types())
    written = json.loads(json.dumps(found).replace('"width"', '"breadth"'))
    with pytest.raises(ArtifactError, match=r"'tests\.support:MLP' fails with TypeError"):
        apply_edits(build_model(MLP, {}), written, module_types())


class Heir(nn.Module):
    """Takes a network over, whole."""

    adopts_children = True

    def arguments(self) -> dict:
        return {}


def test_a_network_that_was_taken_over_keeps_its_factory():
    types = {**module_types(), f"{Heir.__module__}.Heir": Heir}
    model = build_model(CONV, {})
    model.__class__ = Heir
    edits = json.loads(json.dumps(differences(nest(model), build_model(MLP, {}), types)))
    found = apply_edits(build_model(MLP, {}), edits, types)
    assert type(found[0]) is Heir
    assert shapes(found[0]) == shapes(model)
    assert not differences(nest(model), found, types)
