"""The learning rate over a training, beside torch's own schedulers."""

from __future__ import annotations

from functools import partial

import pytest
from compress_tune import Tune
from compress_tune.schedules import WARMUP_START, constant, cosine, exponential, linear, step, warmed_up
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler

from compress_core.parts import TrainingPlan
from tests.support import make_run

shares = st.floats(0.0, 1.0)


def torchs(make, updates: int) -> list[float]:
    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(updates + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(schedule, updates: int) -> list[float]:
    return [schedule(update / updates) for update in range(updates + 1)]


@settings(max_examples=25, deadline=None)
@given(updates=st.integers(2, 60), final=st.floats(0.01, 1.0))
def test_each_decay_is_torchs(updates, final):
    pairs = [
        (
            partial(linear, final=final),
            partial(lr_scheduler.LinearLR, start_factor=1, end_factor=final, total_iters=updates),
        ),
        (partial(exponential, final=final), partial(lr_scheduler.ExponentialLR, gamma=final ** (1 / updates))),
        (partial(cosine, final=final), partial(lr_scheduler.CosineAnnealingLR, T_max=updates, eta_min=final)),
    ]
    for mine, theirs in pairs:
        assert ours(mine, updates) == pytest.approx(torchs(theirs, updates), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(2, 7), updates_per_step=st.integers(1, 20), gamma=st.floats(0.1, 0.9))
def test_steps_fall_where_torchs_do(steps, updates_per_step, gamma):
    updates = steps * updates_per_step
    mine = ours(partial(step, size=1 / steps, gamma=gamma), updates)
    theirs = torchs(partial(lr_scheduler.StepLR, step_size=updates_per_step, gamma=gamma), updates)
    assert mine == pytest.approx(theirs)


@settings(max_examples=25, deadline=None)
@given(warm=st.integers(1, 20), rest=st.integers(1, 40))
def test_a_warm_up_before_a_cosine_is_torchs(warm, rest):
    updates = warm + rest

    def both(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=WARMUP_START, total_iters=warm)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warm])

    mine = ours(warmed_up(partial(cosine, final=0.0), warm / updates), updates)
    # torch restarts at the milestone from the rate that it had; compare the rise, its top and the fall's shape
    theirs = torchs(both, updates)
    assert mine[: warm + 1] == pytest.approx(theirs[: warm + 1], abs=1e-6)
    assert mine[warm:] == pytest.approx(ours(partial(cosine, final=0.0), rest), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(share=st.floats(0.0, 0.99), final=shares, one=shares, other=shares)
def test_a_rate_rises_to_the_end_of_the_warm_up_and_then_only_falls(share, final, one, other):
    early, late = sorted((one, other))
    for decay in (constant, partial(linear, final=final), partial(cosine, final=final)):
        factor = warmed_up(decay, share)
        assert 0.0 <= factor(early) <= 1.0
        if late < share:
            assert factor(early) <= factor(late)
        elif early >= share:
            assert factor(early) >= factor(late) - 1e-12
        if share > 0:
            assert factor(share) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("fields", "factors"),
    [
        ({}, [1.0, 1.0, 1.0]),
        ({"schedule": "linear"}, [1.0, 0.5, 0.0]),
        ({"schedule": "linear", "final": 0.2}, [1.0, 0.6, 0.2]),
        ({"schedule": "cosine"}, [1.0, 0.5, 0.0]),
        ({"schedule": "exponential"}, [1.0, 0.1, 0.01]),
        ({"schedule": "exponential", "final": 0.25}, [1.0, 0.5, 0.25]),
        ({"schedule": "step"}, [1.0, 0.1, 0.001]),
        ({"schedule": "step", "step_size": 0.4, "gamma": 0.5}, [1.0, 0.5, 0.25]),
        ({"schedule": "linear", "warmup": 0.5}, [0.01, 1.0, 0.0]),
    ],
)
def test_the_fields_of_a_recipe_choose_the_schedule(fields, factors):
    plan = Tune(**fields).plan(TrainingPlan(), make_run())
    assert [plan.schedule(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(factors, abs=1e-12)
