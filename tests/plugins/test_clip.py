"""Weight clipping: the operator, the threshold for a share, and zeros that stay."""

from __future__ import annotations

from math import floor

import pytest
import torch
from compress_clip import Clip, ClipRange
from compress_clip.threshold import clip, threshold_for
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import prune

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from compress_core.masks import masked_tensors
from compress_core.testing import Epochs
from compress_core.weights import weights
from tests.support import NETS, make, make_run


def test_only_magnitudes_above_the_threshold_stay_whatever_their_sign():
    weight = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    clipped = clip(weight, 1.0)
    assert clipped.tolist() == [-3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]
    assert torch.signbit(clipped).tolist() == [True] + [False] * 6  # zeros of two signs would not pack


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_with_distinct_magnitudes_exactly_the_share_goes(sizes, share, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    distinct = (torch.randperm(total, generator=generator) + 1.0) * torch.where(
        torch.rand(total, generator=generator) < 0.5, -1, 1
    )
    weights = list(distinct.split(sizes))
    threshold = threshold_for(weights, share)
    gone = 0 if threshold is None else sum(int((clip(weight, threshold) == 0).sum()) for weight in weights)
    assert gone == floor(share * total + 1e-6)


@pytest.mark.parametrize(
    ("values", "share", "gone"),
    [
        ([1, 2, 2, 2, 3], 0.6, 4),  # 3 are wanted, 4 go with a threshold of 2, 1 with a threshold of 1
        ([1, 2, 2, 2, 3], 0.4, 1),  # 2 are wanted: 1 is nearer than 4
        ([2, 2, 2, 2], 0.5, 0),  # all or nothing are equally near
        ([2, 2, 2, 2], 0.8, 4),
        ([1, 2, 3, 4], 0.1, 0),
    ],
)
def test_equal_magnitudes_go_together_and_the_nearest_number_goes(values, share, gone):
    weight = torch.tensor(values, dtype=torch.float32) * torch.tensor([-1, 1, -1, 1, -1])[: len(values)]
    threshold = threshold_for([weight], share)
    assert (0 if threshold is None else int((clip(weight, threshold) == 0).sum())) == gone


def test_a_share_of_each_tensor_agrees_with_torch():
    model = make("mlp")
    clipped = apply_techniques(model, [Clip(share=0.25)], make_run())
    for mine, theirs in zip(clipped.modules(), model.modules(), strict=True):
        if isinstance(mine, nn.Linear):
            prune.l1_unstructured(theirs, "weight", floor(0.25 * theirs.weight.numel()))
            assert torch.equal(mine.weight, theirs.weight)
            assert torch.equal(mine.bias, theirs.bias)


def test_a_share_of_the_whole_network_agrees_with_torch():
    model = make("conv")
    clipped = apply_techniques(model, [Clip(share=0.4, scope="global")], make_run())
    names = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    total = sum(model.get_parameter(name).numel() for name in names)
    pairs = [(model.get_submodule(name.rpartition(".")[0]), "weight") for name in names]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=floor(0.4 * total))
    for name, (module, _) in zip(names, pairs, strict=True):
        assert torch.equal(clipped.get_parameter(name), module.weight)


@pytest.mark.parametrize("name", NETS)
def test_norms_biases_and_skipped_modules_stay(name):
    model = make(name)
    skip = ("*.5",) if name == "mlp" else ("head*",)
    clipped = apply_techniques(model, [Clip(share=0.5, skip=skip)], make_run())
    clippable = {id(place.parameter) for place in weights(model)}
    changed = 0
    for path, parameter in model.named_parameters():
        same = torch.equal(parameter, clipped.get_parameter(path))
        if id(parameter) not in clippable or path.startswith("head") or ".5." in path:
            assert same, path
        changed += not same
    assert changed > 0
    assert all(parameter.ndim >= 2 for parameter in model.parameters() if id(parameter) in clippable)


def test_a_clipped_weight_stays_zero_while_training():
    run = make_run()
    clipped = apply_techniques(make("mlp"), [Clip(share=0.5)], run)
    trained = apply_techniques(clipped, [Epochs(epochs=2)], run)
    for path, parameter in clipped.named_parameters():
        if parameter.ndim >= 2:
            zeros = parameter == 0
            assert zeros.float().mean() > 0.49
            assert (trained.get_parameter(path)[zeros] == 0).all()
            assert not torch.equal(trained.get_parameter(path), parameter)


def test_a_clipped_network_survives_the_artifact_with_its_marks(tmp_path):
    clipped = apply_techniques(make("conv"), [Clip(threshold=0.05)], make_run())
    save(clipped, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    assert masked_tensors(loaded) == masked_tensors(clipped) != []
    for name, parameter in clipped.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_a_threshold_below_every_weight_leaves_no_mark():
    model = make("mlp")
    smallest = min(float(place.parameter.detach().abs().min()) for place in weights(model))
    clipped = apply_techniques(model, [Clip(threshold=smallest / 2)], make_run())
    assert masked_tensors(clipped) == []
    assert all(torch.equal(clipped.get_parameter(name), weight) for name, weight in model.named_parameters())


def test_it_says_how_many_weights_went_and_that_nothing_changed():
    said: list[str] = []
    run = make_run(teller=said.append)
    model = apply_techniques(make("mlp"), [Clip(share=0.5)], run)
    total = 64 * 32 + 32 * 32 + 320
    assert said == [f"clip: {total // 2} of {total} weights went; {total // 2} are zero now"]
    apply_techniques(model, [Clip(share=0.5)], run)
    assert "nothing changed" in said[1]


@pytest.mark.parametrize(
    "fields",
    [{}, {"threshold": 0.1, "share": 0.1}, {"share": 1.0}, {"threshold": -1}, {"threshold": 1, "scope": "global"}],
)
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        Clip(**fields)


@pytest.mark.parametrize("technique", [Clip, ClipRange])
def test_without_weights_it_says_what_can_be_done(technique):
    fields = dict(technique.example)
    with pytest.raises(ModelError, match="no weights") as error:
        technique(**fields).apply(nn.Sequential(nn.ReLU()), make_run())
    assert "before the step" in error.value.mend
    with pytest.raises(ModelError, match="no weights") as error:
        technique(**fields, skip=("layers",)).apply(make("mlp"), make_run())
    assert error.value.mend == "shorten `skip`"


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ModelError, match="'haed' in `skip`") as error:
        apply_techniques(make("conv"), [Clip(share=0.5, skip=("haed",))], make_run())
    assert "head" in error.value.mend
