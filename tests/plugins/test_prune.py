"""Pruning single weights, the schedule, and the parameters of the technique."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from compress_prune import Prune
from compress_prune.ramp import cubic
from compress_prune.threshold import magnitudes, smallest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import prune

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from compress_core.masks import masked_tensors
from compress_core.parts import Change, TrainingPlan, TrainingTechnique
from compress_core.testing import Epochs
from compress_core.weights import weights
from tests.support import NETS, make, make_run


class Watch(TrainingTechnique):
    """Counts the zeros in the weights after every update, behind all other techniques."""

    name = "test-watch"
    seen: Any  # pydantic would copy a list

    @property
    def changes(self) -> frozenset[Change]:
        return frozenset({Change.TRAINING})

    def after_step(self, model, state, progress, run):
        self.seen.append((progress, [parameter.detach() == 0 for parameter in matrices(model)]))


class Randomly(TrainingTechnique):
    """Zeroes weights at random: what magnitude pruning has to beat."""

    name = "test-randomly"
    amount: float

    def finish(self, model, state, run):
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in matrices(model):
                parameter.masked_fill_(torch.rand(parameter.shape, generator=generator) < self.amount, 0)
        return model


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [place.parameter for place in weights(model)]


def zeros(model: nn.Module) -> int:
    return sum(int((parameter == 0).sum()) for parameter in matrices(model))


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0.0, 0.1), (0.2, 0.1), (0.4, 0.9 - 0.8 * 0.75**3), (0.6, 0.8), (0.8, 0.8875), (1.0, 0.9)],
)
def test_the_share_rises_as_zhu_and_gupta_write(progress, share):
    assert cubic(progress, start=0.2, end=1.0, initial=0.1, final=0.9) == pytest.approx(share)


@settings(max_examples=80, deadline=None)
@given(one=st.floats(0, 1), other=st.floats(0, 1), start=st.floats(0, 0.9), final=st.floats(0.01, 0.99))
def test_the_share_never_falls_and_ends_exactly(one, other, start, final):
    low, high = sorted((one, other))
    shares = [cubic(at, start=start, end=1.0, final=final) for at in (0.0, low, high, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == final


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_number_that_goes_is_exact_even_among_equals(sizes, share, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randint(-2, 3, (size,), generator=generator).float() for size in sizes]
    count = int(share * sum(sizes))
    numbers = [magnitudes(weight, torch.zeros_like(weight, dtype=torch.bool)) for weight in weights]
    masks = list(smallest(numbers, count))
    gone = torch.cat([weight[mask] for weight, mask in zip(weights, masks, strict=True)])
    stay = torch.cat([weight[~mask] for weight, mask in zip(weights, masks, strict=True)])
    assert len(gone) == count
    if len(gone) and len(stay):
        assert gone.abs().max() <= stay.abs().min()


@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_a_share_of_each_layer_agrees_with_torch(schedule):
    model = make("mlp")
    pruned = apply_techniques(model, [Prune(amount=0.3, schedule=schedule)], make_run())
    for mine, theirs in zip(pruned.modules(), model.modules(), strict=True):
        if isinstance(mine, nn.Linear):
            prune.l1_unstructured(theirs, "weight", 0.3)
            assert torch.equal(mine.weight, theirs.weight)
            assert torch.equal(mine.bias, theirs.bias)


def test_a_share_of_the_whole_network_agrees_with_torch():
    model = make("conv")
    pruned = apply_techniques(model, [Prune(amount=0.7, allocation="global")], make_run())
    names = [place.name for place in weights(model)]
    pairs = [(model.get_submodule(name.rpartition(".")[0]), "weight") for name in names]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.7)
    for name, (module, _) in zip(names, pairs, strict=True):
        assert torch.equal(pruned.get_parameter(name), module.weight)
    shares = {round(float((pruned.get_parameter(name) == 0).float().mean()), 2) for name in names}
    assert len(shares) > 3


def test_while_training_no_zero_comes_back_and_the_number_follows_the_schedule():
    seen = []
    techniques = [Prune(amount=0.8, start=0.1, end=0.6), Epochs(epochs=3), Watch(seen=seen)]
    pruned = apply_techniques(make("mlp"), techniques, make_run())
    sizes = [parameter.numel() for parameter in matrices(pruned)]
    for (_, before), (progress, after) in pairwise(seen):
        for size, old, new in zip(sizes, before, after, strict=True):
            assert (new | ~old).all()
            wanted = cubic(progress, start=0.1, end=0.6, final=0.8) * size
            assert wanted - 0.03 * size <= int(new.sum()) <= wanted + 1
            if progress >= 0.6:
                assert int(new.sum()) == round(0.8 * size)
    assert len({int(masks[0].sum()) for _, masks in seen}) > 10
    assert zeros(pruned) == sum(round(0.8 * size) for size in sizes)


def test_with_one_shot_everything_goes_before_the_first_update():
    seen = []
    apply_techniques(
        make("mlp"), [Prune(amount=0.5, schedule="one-shot"), Epochs(epochs=1), Watch(seen=seen)], make_run()
    )
    assert {int(masks[0].sum()) for _, masks in seen} == {1024}
    assert all(torch.equal(masks[0], seen[0][1][0]) for _, masks in seen)


@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_removed_weights_stay_zero_in_later_trainings(schedule, tmp_path):
    run = make_run()
    pruned = apply_techniques(make("conv"), [Prune(amount=0.6, schedule=schedule), Epochs(epochs=1)], run)
    save(pruned, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    assert masked_tensors(loaded) == masked_tensors(pruned) == sorted(place.name for place in weights(pruned))
    trained = apply_techniques(loaded, [Epochs(epochs=1)], run)
    for before, after in zip(matrices(pruned), matrices(trained), strict=True):
        assert (before == 0).sum() == round(0.6 * before.numel())
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)


def test_zeros_that_are_there_already_are_kept_and_count():
    run = make_run()
    first = apply_techniques(make("mlp"), [Prune(amount=0.5)], run)
    more = apply_techniques(first, [Prune(amount=0.75), Epochs(epochs=1)], run)
    less = apply_techniques(more, [Prune(amount=0.25)], run)
    for one, two, three in zip(matrices(first), matrices(more), matrices(less), strict=True):
        assert ((two == 0) | (one != 0)).all()
        assert int((two == 0).sum()) == round(0.75 * two.numel())
        assert torch.equal(two, three)


@pytest.mark.parametrize(("granularity", "share"), [("weight", 0.7), ("channel", 0.7), ("channel", 0.1)])
def test_masks_that_have_grown_to_a_share_stay_until_it_rises(granularity, share):
    model, run = make("conv"), make_run()
    masks = Prune(amount=0.9, granularity=granularity, allocation="global").begin(model, run)
    masks.grow(model, share, run)
    before = [mask.clone() for mask in masks.gone]
    with torch.no_grad():
        for index, weight in enumerate(matrices(model)):
            weight.normal_(generator=torch.Generator().manual_seed(index)).mul_(10.0 ** (index % 3))
    masks.grow(model, share, run)
    assert all(torch.equal(one, other) for one, other in zip(before, masks.gone, strict=True))
    assert torch.float64 not in {buffer.dtype for buffer in masks.buffers()}  # some devices cannot hold it


def test_trained_magnitudes_say_more_than_chance():
    run = make_run()
    trained = apply_techniques(make("mlp"), [Epochs(epochs=6)], run)
    smallest_gone = run.evaluate(apply_techniques(trained, [Prune(amount=0.6, allocation="global")], run)).value
    random_gone = run.evaluate(apply_techniques(trained, [Randomly(amount=0.6)], run)).value
    assert run.evaluate(trained).value > 0.9
    assert smallest_gone > random_gone + 0.2


@pytest.mark.parametrize("name", NETS)
def test_norms_biases_and_skipped_modules_stay(name):
    model = make(name)
    skip = ("*.5",) if name == "mlp" else ("head",)
    pruned = apply_techniques(model, [Prune(amount=0.5, skip=skip)], make_run())
    skipped = model.get_submodule("layers.5" if name == "mlp" else "head")
    names = {place.name for place in weights(model, [skipped])}
    for path, parameter in model.named_parameters():
        assert torch.equal(parameter, pruned.get_parameter(path)) == (path not in names)


def test_it_says_how_many_weights_went_and_that_nothing_changed():
    said: list[str] = []
    run = make_run(teller=said.append)
    model = apply_techniques(make("mlp"), [Prune(amount=0.5)], run)
    apply_techniques(model, [Prune(amount=0.5)], run)
    assert said[0] == "prune: 1696 of 3392 weights went; 1696 are zero now"
    assert "nothing changed" in said[1]


def test_zeros_that_training_fills_are_no_weights_that_came_back():
    model = make("mlp")
    with torch.no_grad():
        model.layers[3].weight.zero_()
    said: list[str] = []
    run = make_run(teller=said.append)
    pruned = apply_techniques(model, [Prune(amount=0.05), Epochs(epochs=2)], run)
    assert zeros(pruned) < zeros(model)
    total = sum(weight.numel() for weight in matrices(pruned))
    told = re.fullmatch(r"prune: (\d+) of (\d+) weights went; (\d+) are zero now", said[-1])
    went, also, now = map(int, told.groups())
    assert also == total
    assert now == zeros(pruned)
    assert 0 < went <= sum(round(0.05 * weight.numel()) for weight in matrices(pruned))


def test_no_epoch_is_chosen_before_the_schedule_has_ended():
    run = make_run()
    assert Prune(amount=0.5, end=0.7).plan(TrainingPlan(), run).select_from == 0.7
    assert Prune(amount=0.5, end=0.7).plan(TrainingPlan(select_from=0.9), run).select_from == 0.9
    assert Prune(amount=0.5, schedule="one-shot").plan(TrainingPlan(), run).select_from == 0.0


def test_the_same_seed_gives_the_same_bytes():
    techniques = [Prune(amount=0.5), Epochs(epochs=1)]
    one, two = (apply_techniques(make("conv"), techniques, make_run(seed=3)) for _ in range(2))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "amount"),
        ({"amount": 1.0}, "less than 1"),
        ({"amount": 0.0}, "greater than 0"),
        ({"amount": 0.5, "multiple": 16}, "granularity: channel"),
        ({"amount": 0.5, "criterion": "scale"}, "granularity: channel"),
        ({"amount": 0.5, "criterion": "tailor"}, "taylor"),
        ({"amount": 0.5, "criterion": "movement", "schedule": "one-shot"}, "learns from training"),
        ({"amount": 0.5, "pattern": "2:4"}, "leave `amount` out"),
        ({"pattern": "4:2"}, "as in `2:4`"),
        ({"pattern": "2:4", "allocation": "global"}, "leave `allocation` out"),
        ({"pattern": "2:4", "granularity": "kernel"}, "leave `granularity` out"),
        ({"amount": 0.5, "block": (2, 2)}, "granularity: block"),
        ({"amount": 0.5, "granularity": "block", "block": (0, 4)}, "0 by 4"),
        ({"amount": 0.5, "granularity": "channel", "allocation": "erk"}, "deals out weights"),
        ({"amount": 0.5, "schedule": "one-shot", "end": 0.9}, "one-shot schedule has no"),
        ({"amount": 0.5, "start": 0.6, "end": 0.6}, "before `end`"),
        ({"amount": 0.5, "granularity": "filter"}, "granularity"),
    ],
)
def test_wrong_parameters_are_refused_by_name(fields, says):
    with pytest.raises(ValidationError, match=says):
        Prune(**fields)


def test_parameters_survive_being_written_out():
    technique = Prune(amount=0.5, granularity="channel", multiple=16)
    assert Prune(**technique.model_dump()) == technique
    assert Prune(**Prune(**Prune.example).model_dump()) == Prune(**Prune.example)


def test_a_network_without_weights_is_refused():
    with pytest.raises(ModelError, match="no weights to prune"):
        apply_techniques(make("mlp"), [Prune(amount=0.5, skip=("layers",))], make_run())
