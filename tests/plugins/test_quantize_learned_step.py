"""Learned step sizes: the gradients of the paper, what they begin with, and where they end."""

from __future__ import annotations

import pytest
import torch
from compress_quantize.affine import fake_quantize_weight
from compress_quantize.learned_step import (
    LEAST,
    LearnedQuantizer,
    LearnedStep,
    fake_quantize_learned,
    initial_weight_step,
    learned_fake_quantize,
)
from compress_quantize.observing import Observing
from compress_quantize.weight_grids import WeightGrid
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**31)
BITS = st.integers(2, 8)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def surrogate(x, step, bounds):
    """What the gradients of LSQ are those of: rounding adds a constant."""
    steps = (x / step).clamp(*bounds)
    return step * (steps + (steps.round() - steps).detach())


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, bits=BITS, step=st.floats(0.01, 2), zero=st.floats(0, 1))
def test_both_gradients_are_those_of_rounding_as_a_constant(seed, bits, step, zero):
    x = normal(50, seed=seed).requires_grad_()
    step = torch.tensor(step, dtype=torch.double, requires_grad=True)
    shift = round(zero * (2**bits - 1))
    bounds = (float(-shift), float(2**bits - 1 - shift))
    weights = normal(50, seed=seed + 1)
    mine = learned_fake_quantize(x, step, bounds, 1.0)
    found = torch.autograd.grad((mine * weights).sum(), (x, step))
    theirs = surrogate(x, step, bounds)
    expected = torch.autograd.grad((theirs * weights).sum(), (x, step))
    assert torch.allclose(mine, theirs)
    assert torch.allclose(found[0], expected[0])
    assert torch.allclose(found[1].double(), expected[1], atol=1e-4)


def test_the_steps_gradient_is_the_papers_equation_3():
    x = torch.tensor([0.26, -0.1, 0.9, -9.0, 0.7])
    for value, expected in zip(x, [1 - 0.26 / 0.2, -0.5 + 0.5, 3.0, -3.0, 3.0], strict=True):
        step = torch.tensor(0.2, requires_grad=True)
        learned_fake_quantize(value, step, (-3.0, 3.0), 1.0).backward()
        if value != -0.1:  # half way between two integers
            assert float(step.grad) == pytest.approx(expected, abs=1e-5)


def test_gradients_agree_with_finite_differences_between_two_roundings():
    x, bounds, nudge = torch.tensor([0.31, -0.52, 5.0, -5.0], dtype=torch.double), (-7.0, 7.0), 1e-6
    step = torch.tensor(0.2, dtype=torch.double, requires_grad=True)
    learned_fake_quantize(x, step, bounds, 1.0).sum().backward()
    with torch.no_grad():
        rounded = (x / step).clamp(*bounds).round()
        constant = rounded - (x / step).clamp(*bounds)

        def value(at):
            return float((at * ((x / at).clamp(*bounds) + constant)).sum())

        slope = (value(step + nudge) - value(step - nudge)) / (2 * nudge)
    assert float(step.grad) == pytest.approx(slope, rel=1e-4)


def test_forward_and_gradients_agree_with_torchs_own_kernel():
    x = normal(400).float() * 2
    # torch cuts off where the rounded number is out of range, the paper where the number itself is
    x = x[((x / 0.15).abs() < 7) | ((x / 0.15).abs() > 7.5)].requires_grad_()
    step = torch.tensor([0.15], requires_grad=True)
    theirs = torch._fake_quantize_learnable_per_tensor_affine(x, step, torch.zeros(1), -7, 7, 0.25)
    expected = torch.autograd.grad(theirs.pow(2).sum(), (x, step))
    mine = learned_fake_quantize(x, step, (-7.0, 7.0), 0.25)
    found = torch.autograd.grad(mine.pow(2).sum(), (x, step))
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.allclose(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], rtol=1e-4)
    assert (found[0] == 0).any()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, bits=BITS, shift=st.floats(-1, 1))
def test_zero_is_exact_on_every_learned_grid(seed, bits, shift):
    quantizer = LearnedQuantizer(Observing(levels=2**bits - 1)).train()
    quantizer(normal(100, seed=seed).float() + shift)
    quantizer.activate()
    assert not quantizer(torch.zeros(1)).any()
    assert len(quantizer(normal(1000, seed=seed).float()).unique()) <= 2**bits


def test_a_steps_gradient_is_scaled_by_the_size_and_the_levels_and_sgd_moves_it_as_in_the_paper():
    weight = normal(4, 3, 3, 3).float()
    grid = WeightGrid(bits=4)
    learned = LearnedStep(initial_weight_step(weight, grid))
    before = learned.step().detach().clone()
    plain = before.clone().requires_grad_()
    learned_fake_quantize(weight, plain.reshape(-1, 1, 1, 1), (-7.0, 7.0), 1.0).pow(2).sum().backward()
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.01)
    fake_quantize_learned(weight, learned, grid).pow(2).sum().backward()
    optimizer.step()
    scale = (27 * 7) ** -0.5
    assert torch.allclose(learned.step(), before - 0.01 * scale * plain.grad, rtol=1e-5)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_the_first_step_is_twice_the_mean_of_what_is_there_over_the_root_of_the_levels(per_tensor):
    weight = torch.tensor([[0.5, -9.0, 0.0, 0.1, 0.0], [8.0, 0.2, 0.2, 0.0, 0.0]])
    first = initial_weight_step(weight, WeightGrid(bits=3, per_tensor=per_tensor))
    expected = torch.tensor(18.0 / 6) if per_tensor else torch.tensor([3.2, 2.8])
    assert torch.allclose(
        first, torch.minimum(2 * expected / 3**0.5, torch.tensor(9.0 if per_tensor else [9.0, 8.0]) / 3)
    )
    assert torch.equal(initial_weight_step(torch.zeros(2, 3), WeightGrid()), torch.ones(2))


def test_the_first_step_holds_the_largest_magnitude_where_the_papers_is_larger():
    weight = torch.tensor([[0.5, -1.0, 0.25, 0.0]])
    assert torch.allclose(initial_weight_step(weight, WeightGrid(bits=8)), torch.tensor([1 / 127]))
    assert torch.allclose(initial_weight_step(weight, WeightGrid(bits=2)), torch.tensor([1.0]))


def test_a_removed_weight_is_exactly_zero_and_gets_no_step_of_its_own():
    weight = normal(6, 20).float()
    weight[:, ::2] = 0
    grid = WeightGrid(bits=2)
    fake = fake_quantize_learned(weight, LearnedStep(initial_weight_step(weight, grid)), grid)
    assert not fake[:, ::2].any()
    assert torch.allclose(initial_weight_step(weight, grid), initial_weight_step(weight[:, 1::2], grid))


def test_steps_find_the_scale_of_least_error():
    weight = normal(8, 200).float()
    grid = WeightGrid(bits=3)
    learned = LearnedStep(4 * initial_weight_step(weight, grid))
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (fake_quantize_learned(weight, learned, grid) - weight).square().sum().backward()
        optimizer.step()
    best = WeightGrid(bits=3, least_error=True).scale(weight)
    error, least, widest = (
        float((weight - fake_quantize_weight(weight, scale, 3)).square().sum())
        for scale in (learned.step().detach(), best, WeightGrid(bits=3).scale(weight))
    )
    assert error < 1.03 * least < widest


def test_a_factor_stays_positive_and_narrow_keeps_the_steps_of_the_channels_that_stay():
    learned = LearnedStep(torch.tensor([1.0, 2.0, 4.0]))
    learned.factor.data.copy_(torch.tensor([-1.0, 0.5, 1.0]))
    learned.stay_positive()
    assert torch.equal(learned.step(), torch.tensor([LEAST, 1.0, 4.0]))
    learned.narrow(torch.tensor([1, 2]))
    assert torch.equal(learned.step(), torch.tensor([1.0, 4.0]))
    single = LearnedStep(torch.tensor(3.0))
    single.narrow(torch.tensor([0]))
    assert float(single.step().detach()) == 3.0


def test_an_activation_begins_at_the_papers_step_after_what_was_observed():
    quantizer = LearnedQuantizer(Observing(levels=15)).train()
    x = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) ** 8
    assert torch.equal(quantizer(x), x)
    quantizer.activate()
    step, zero_point = quantizer.grid()
    assert float(step) == pytest.approx(2 * float(x.mean()) / 15**0.5, rel=1e-5)
    assert int(zero_point) == 0
    quantizer.restart()
    quantizer(100 * x)
    assert torch.equal(quantizer.grid()[0], step)


def test_an_activations_step_gets_the_gradient_of_its_batch_scaled_by_the_size_of_one_example():
    quantizer = LearnedQuantizer(Observing(levels=3)).train()
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    quantizer(x)
    quantizer.activate()
    quantizer(x).sum().backward()
    step = quantizer.grid()[0].clone().requires_grad_()
    learned_fake_quantize(x, step, (0.0, 3.0), 1.0).sum().backward()
    scaled = step.grad * (6 * 3) ** -0.5 / step.detach()
    assert torch.allclose(quantizer.learned.factor.grad, scaled)
