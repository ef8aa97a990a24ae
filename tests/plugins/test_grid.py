"""Weights on few levels with a learned step: the equations, what stays zero, and what a packed file makes of it."""

from __future__ import annotations

import pytest
import torch
from compress_pack.grid import Grid
from compress_pack.latent import Latent
from compress_pack.levels import codes, least_error_step, on_grid, slopes
from compress_prune import Prune
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.masks import hold_zeros
from compress_core.measure import quality
from compress_core.testing import Epochs, check_technique
from compress_core.weights import weights
from tests.support import make, make_run


def levels_of(weight: torch.Tensor) -> int:
    return len(weight.detach().unique())


def on_steps(weight: torch.Tensor, levels: int) -> bool:
    """Whether all numbers are whole multiples of one step, bit for bit."""
    sizes = weight.detach().abs().unique()
    smallest = sizes[sizes > 0][0]
    for divisor in range(1, levels + 1):
        step = smallest / divisor
        whole = (weight / step).round()
        if whole.abs().max() <= levels and torch.equal(whole.detach() * step, weight.detach()):
            return True
    return False


def test_levels_are_the_nearest_multiples_of_the_step_within_their_number():
    weight, step = torch.tensor([-9.0, -0.7, -0.2, 0.0, 0.24, 0.26, 1.1]), torch.tensor(0.5)
    assert codes(weight, step, 2).tolist() == [-2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 2.0]
    assert not torch.signbit(codes(weight, step, 2)[2:5]).any()


@settings(max_examples=40, deadline=None)
@given(step=st.floats(1e-3, 10.0), levels=st.integers(1, 8), seed=st.integers(0, 99))
def test_what_lies_on_levels_already_stays_as_it_is(step, levels, seed):
    weight = 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    once = on_grid(weight, torch.tensor(step), levels)
    assert torch.equal(on_grid(once, torch.tensor(step), levels), once)


def test_the_gradient_of_the_step_is_that_of_autograd_with_rounding_passed_straight_through():
    weight = torch.randn(200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_step = torch.tensor(-0.7, requires_grad=True)
    upstream = torch.randn(200, generator=torch.Generator().manual_seed(1))
    position = (weight / log_step.exp()).clamp(-2, 2)
    rounded = position + (position.round() - position).detach()
    (rounded * log_step.exp() * upstream).sum().backward()
    by_weight, by_step = slopes(weight.detach(), upstream, log_step.detach().exp(), 2)
    torch.testing.assert_close(by_weight, weight.grad)
    torch.testing.assert_close(by_step, log_step.grad, rtol=1e-4, atol=1e-5)


def test_no_step_of_a_fine_search_has_less_error_by_much():
    weight = torch.randn(500, generator=torch.Generator().manual_seed(2))

    def error(step: float) -> float:
        return float((on_grid(weight, torch.tensor(step), 3) - weight).square().sum())

    best = min(error(at / 1000) for at in range(50, 2000))
    assert error(float(least_error_step(weight, 3))) < 1.02 * best


def test_a_training_leaves_every_weight_on_few_levels_of_a_step_that_has_moved():
    said: list[str] = []
    run, levels = make_run(teller=said.append), 3
    before = {place.name: least_error_step(place.parameter.detach(), levels) for place in weights(make("mlp"))}
    model = apply_techniques(make("mlp"), [Grid(levels=levels, bias_levels=7), Epochs(epochs=4)], run)
    assert "lie on at most 15 levels" in said[-1]
    for place in weights(model):
        assert levels_of(place.parameter) <= 2 * levels + 1
        assert on_steps(place.parameter, levels)
        assert abs(float(place.parameter.detach().abs().max()) / levels / float(before[place.name]) - 1) > 1e-3
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert on_steps(parameter, 7)


def test_learning_on_levels_beats_rounding_afterwards():
    run = make_run()
    dense = apply_techniques(make("mlp"), [Epochs(epochs=20)], run)
    rounded = apply_techniques(dense, [Grid(levels=1)], run)
    learned = apply_techniques(dense, [Grid(levels=1), Epochs(epochs=10)], run)
    found = [quality(model, [run.splits.test.columns], run.task).value for model in (rounded, learned)]
    assert found[1] > found[0] + 0.05
    assert all(levels_of(place.parameter) <= 3 for place in weights(learned))


def test_what_was_pruned_stays_zero_on_its_levels():
    run = make_run()
    pruned = apply_techniques(make("mlp"), [Prune(amount=0.8), Epochs(epochs=2)], run)
    model = apply_techniques(pruned, [Grid(levels=4), Epochs(epochs=3)], run)
    for before, after in zip(weights(pruned), weights(model), strict=True):
        assert not after.parameter[before.parameter == 0].any()
        assert after.parameter.any()


def test_weights_that_are_pruned_in_the_same_step_stay_zero():
    model = apply_techniques(make("mlp"), [Prune(amount=0.8), Grid(levels=4), Epochs(epochs=4)], make_run())
    for place in weights(model):
        assert (place.parameter == 0).float().mean() >= 0.79
        assert on_steps(place.parameter, 4)


def test_a_held_zero_takes_no_part_in_the_gradient_of_the_step():
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0, 2.0]]))
    hold_zeros(model, "weight")
    latent = Latent(model, {"weight": 2})
    latent.round(model)
    with torch.no_grad():
        latent.weight(0)[0, 0] = 0.3  # the optimizer has moved it
    model.weight.grad = torch.tensor([[100.0, 0.0, 0.0]])
    latent.straight_through(model)
    assert float(latent.log_steps.grad) == 0.0
    assert float(model.weight.detach()[0, 0]) == 0.0


def test_without_epochs_each_tensor_has_the_step_of_least_error():
    model = apply_techniques(make("mlp"), [Grid(levels=2)], make_run())
    for before, after in zip(weights(make("mlp")), weights(model), strict=True):
        weight = before.parameter.detach()
        torch.testing.assert_close(after.parameter.detach(), on_grid(weight, least_error_step(weight, 2), 2))


def test_a_skipped_layer_and_its_bias_keep_their_numbers():
    before = make("mlp")
    names = [path for path, module in before.named_modules() if isinstance(module, nn.Linear)]
    model = apply_techniques(before, [Grid(levels=1, bias_levels=1, skip=(names[-1],))], make_run())
    for old, new in zip(
        before.get_submodule(names[-1]).parameters(), model.get_submodule(names[-1]).parameters(), strict=True
    ):
        assert torch.equal(old, new)


def test_an_artifact_keeps_the_levels_bit_for_bit(tmp_path):
    model = apply_techniques(make("mlp"), [Grid(levels=4, bias_levels=7), Epochs(epochs=1)], make_run())
    save(model, tmp_path / "m", factory="tests.support:make", params={"name": "mlp"})
    again = load(tmp_path / "m", trust=["tests.support:make"])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_it_keeps_the_promises_of_a_technique(net):
    report = check_technique(Grid(**Grid.example), nets=[net], others=[Epochs()], compose=False, export=False)
    assert not report.refused
