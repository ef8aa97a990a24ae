"""Weights that come back: network surgery and RigL."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from compress_prune import Prune
from compress_prune.dynamic import cosine_share, rigged, survives
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.errors import RecipeError
from compress_core.masks import masked_tensors
from compress_core.order import check_together
from compress_core.testing import Epochs
from compress_core.weights import weights
from tests.plugins.test_prune import Watch, matrices, zeros
from tests.support import make, make_run

SCHEDULES = [{"schedule": "surgery"}, {"schedule": "rigl", "every": 3, "regrow": 0.5}]


def test_only_a_score_well_beyond_the_threshold_changes_sides():
    score = torch.tensor([0.85, 0.95, 1.05, 1.15])
    assert survives(score, torch.ones(4, dtype=torch.bool), 1.0, 0.1).tolist() == [False, True, True, True]
    assert survives(score, torch.zeros(4, dtype=torch.bool), 1.0, 0.1).tolist() == [False, False, False, True]
    assert survives(-score, torch.ones(4, dtype=torch.bool), -1.0, 0.1).tolist() == [True, True, True, False]
    assert survives(-score, torch.zeros(4, dtype=torch.bool), -1.0, 0.1).tolist() == [True, False, False, False]


def test_the_smallest_go_and_those_with_the_largest_gradients_come_back():
    weight = torch.tensor([5.0, 0.1, 4.0, 0.0, 0.0, 0.0])
    gradient = torch.tensor([9.0, 9.0, 9.0, 1.0, -3.0, 2.0])
    gone = weight == 0
    assert rigged(weight, gradient, gone, 2).tolist() == gone.tolist()  # both come back at once
    assert rigged(weight, torch.tensor([9.0, 0, 9, 1, -3, 2]), gone, 1).tolist() == [0, 1, 0, 1, 0, 1]
    barred = torch.tensor([False, False, False, False, True, False])
    assert rigged(weight, torch.tensor([9.0, 0, 9, 1, -3, 2]), gone, 1, barred).tolist() == [0, 1, 0, 1, 1, 0]


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 40), count=st.integers(0, 50), seed=st.integers(0, 999))
def test_an_exchange_keeps_the_number_and_brings_back_nothing_barred(size, count, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, size, generator=generator)
    gone = torch.rand(size, generator=generator) < 0.6
    barred = gone & (torch.rand(size, generator=generator) < 0.5)
    after = rigged(weight.masked_fill(gone, 0), gradient, gone, count, barred)
    assert after.sum() == gone.sum()
    assert (after | ~barred).all()
    grown, idle = gone & ~after, gone & after & ~barred
    if grown.any() and idle.any():
        assert gradient[grown].abs().min() >= gradient[idle].abs().max()


def test_the_share_that_is_exchanged_falls_along_half_a_cosine():
    assert [cosine_share(0.3, t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.15, 0.0])
    assert cosine_share(0.3, 0.25) == pytest.approx(0.15 * (1 + 2**-0.5))


def test_surgery_trains_what_is_gone_behind_its_mask():
    """The second weight is gone, grows behind its mask, and changes places with the first."""
    run = make_run()
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    weight = model[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, 0.5, 3.0, 2.0]]))
    masks = Prune(amount=0.5, schedule="surgery").begin(model, run)
    masks.grow(model, 0.9, run)
    assert weight.tolist() == [[1.0, 0.0, 3.0, 2.0]]  # 0.5 lies below 0.9 times the threshold, and 1.0 does not
    for hidden in (0.75, 1.0):
        with torch.no_grad():
            weight += torch.tensor([[0.0, 0.25, 0.0, 0.0]])  # an optimizer that sees 0
        masks.hold(model)
        assert weight.tolist() == [[1.0, 0.0, 3.0, 2.0]]
        assert masks.hidden[0].tolist() == [[0.0, hidden, 0.0, 0.0]]
    masks.grow(model, 0.95, run)
    assert weight.tolist() == [[1.0, 0.0, 3.0, 2.0]]  # 1.0 does not reach 1.1 times the threshold
    with torch.no_grad():
        weight += torch.tensor([[0.0, 1.5, 0.0, 0.0]])
    masks.grow(model, 0.99, run)
    assert weight.tolist() == [[0.0, 2.5, 3.0, 2.0]]
    masks.grow(model, 1.0, run)
    assert weight.tolist() == [[0.0, 2.5, 3.0, 0.0]]


@pytest.mark.parametrize("fields", SCHEDULES, ids=["surgery", "rigl"])
def test_weights_come_back_until_the_end_and_never_after(fields):
    seen = []
    run = make_run()
    technique = Prune(amount=0.8, end=0.6, **fields)
    pruned = apply_techniques(make("mlp"), [technique, Epochs(epochs=4), Watch(seen=seen)], run)
    back = late = 0
    for (_, before), (progress, after) in pairwise(seen):
        returned = sum(int((old & ~new).sum()) for old, new in zip(before, after, strict=True))
        if progress <= 0.6:
            back += returned
        else:
            late += returned
        if fields["schedule"] == "rigl" or progress >= 0.6:
            assert [int(new.sum()) for new in after] == [round(0.8 * new.numel()) for new in after]
    assert back > 20
    assert late == 0
    assert zeros(pruned) == sum(round(0.8 * weight.numel()) for weight in matrices(pruned))
    assert masked_tensors(pruned) == sorted(place.name for place in weights(pruned))
    assert run.evaluate(pruned).value > 0.6


@pytest.mark.parametrize("fields", SCHEDULES, ids=["surgery", "rigl"])
def test_what_an_earlier_step_removed_never_comes_back(fields):
    seen = []
    run = make_run()
    first = apply_techniques(make("mlp"), [Prune(amount=0.5)], run)
    was = [weight == 0 for weight in matrices(first)]
    more = apply_techniques(first, [Prune(amount=0.7, **fields), Epochs(epochs=3), Watch(seen=seen)], run)
    assert all(((old & ~new).sum() == 0) for _, masks in seen for old, new in zip(was, masks, strict=True))
    assert zeros(more) == sum(round(0.7 * weight.numel()) for weight in matrices(more))


@pytest.mark.parametrize("fields", SCHEDULES, ids=["surgery", "rigl"])
def test_it_says_how_many_went_and_repeats_to_the_byte(fields):
    said: list[str] = []
    run = make_run(teller=said.append)
    techniques = [Prune(amount=0.5, **fields), Epochs(epochs=1)]
    one, two = (apply_techniques(make("mlp"), techniques, run) for _ in range(2))
    assert said[0] == said[1] == "prune: 1696 of 3392 weights went; 1696 are zero now"
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_of_a_sparse_start_rigl_finds_better_connections_than_chance():
    """Evci et al. 2020, fig. 2: at the same sparsity the exchange beats the static random network."""
    run = make_run()
    common = {"amount": 0.97, "criterion": "random", "allocation": "erk"}
    static = apply_techniques(make("mlp"), [Prune(**common, schedule="one-shot"), Epochs(epochs=12)], run)
    rigl = Prune(**common, schedule="rigl", every=5, end=0.75)
    moved = apply_techniques(make("mlp"), [rigl, Epochs(epochs=12)], run)
    assert zeros(static) == zeros(moved)
    assert run.evaluate(moved).value > run.evaluate(static).value + 0.1


@pytest.mark.parametrize("fields", SCHEDULES, ids=["surgery", "rigl"])
def test_without_training_it_is_refused(fields):
    with pytest.raises(RecipeError, match="does nothing without training"):
        check_together([Prune(amount=0.5, **fields)], teacher=False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"amount": 0.5, "schedule": "rigl", "granularity": "channel"}, "single weights"),
        ({"pattern": "2:4", "schedule": "surgery"}, "single weights"),
        ({"amount": 0.5, "every": 10}, "schedule: rigl"),
        ({"amount": 0.5, "schedule": "rigl", "criterion": "movement"}, "schedule: gradual"),
    ],
)
def test_wrong_parameters_are_refused_by_name(fields, says):
    with pytest.raises(ValueError, match=says):
        Prune(**fields)
