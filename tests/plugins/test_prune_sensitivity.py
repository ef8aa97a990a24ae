"""Sensitivity: what layers cost, and how a share is dealt out by it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from compress_prune import Prune
from compress_prune.sensitivity import Sensitivity, dealt_out, measured, restoring, shares_at, validation_loss
from compress_prune.targets import solved
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.testing import Epochs
from compress_core.weights import weights
from tests.support import make, make_run


def line(name: str, slope: float, last: float = 0.95) -> Sensitivity:
    return Sensitivity(name, ((0.0, 0.0), (0.5, 0.5 * slope), (last, last * slope)))


def test_layers_lose_so_much_that_each_costs_the_same():
    # s_l = c / slope_l, and n_1 c / 2 + n_2 c / 6 = 0.2 (n_1 + n_2)
    curves = [line("one", 2.0), line("two", 6.0)]
    assert dealt_out(curves, [100, 100], 0.2) == pytest.approx([0.3, 0.1], rel=1e-4)
    assert dealt_out(curves, [100, 300], 0.2) == pytest.approx([0.4, 0.4 / 3], rel=1e-4)


def test_layers_that_cost_nothing_lose_equal_shares_and_before_all_others():
    curves = [line("free", 0.0), line("dear", 5.0), line("free too", 0.0)]
    assert dealt_out(curves, [10, 10, 30], 0.4) == pytest.approx([0.5, 0.0, 0.5], abs=1e-4)
    assert dealt_out([line("a", 0.0), line("b", 0.0)], [7, 9], 0.6) == pytest.approx([0.6, 0.6], abs=1e-5)


def test_a_dip_in_a_curve_makes_nothing_cheaper():
    dips = Sensitivity("dips", ((0.0, 0.0), (0.25, 1.0), (0.5, -3.0), (0.9, 2.0)))
    assert [loss for _, loss in dips.rising] == [0.0, 1.0, 1.0, 2.0]
    assert dips.share_at(0.5, 0.0) == pytest.approx(0.125)
    assert dips.share_at(1.5, 0.0) == pytest.approx(0.7)
    assert dips.share_at(9.0, 0.0) == 0.9


def test_what_is_zero_already_counts_and_the_others_lose_the_less_for_it():
    curves = [line("one", 2.0), line("two", 6.0)]
    assert dealt_out(curves, [100, 100], 0.2, [0.0, 0.25]) == pytest.approx([0.15, 0.25], rel=1e-4)
    assert dealt_out(curves, [100, 100], 0.2, [0.0, 0.1]) == pytest.approx([0.3, 0.1], rel=1e-4)


def test_rounds_by_sensitivity_end_at_the_amount_although_layers_take_turns_at_losing_more_than_their_share():
    run = make_run()
    model = apply_techniques(make("mlp"), [Epochs(epochs=3)], run)
    technique = Prune(amount=0.6, allocation="sensitivity", schedule="progressive", max_loss=99, step=0.3)
    found = weights(apply_techniques(model, [technique, Epochs(epochs=1)], run))
    total = sum(place.parameter.numel() for place in found)
    assert sum(int((place.parameter == 0).sum()) for place in found) == pytest.approx(0.6 * total, abs=3)


def test_a_target_is_met_where_a_curve_is_flat_at_its_highest():
    flat = Sensitivity("flat", ((0.0, 0.0), (0.25, 0.1), (0.5, 0.05), (0.75, 0.02), (0.9, 0.1)))

    def plan(level: float) -> list[torch.Tensor]:
        return [torch.arange(1000) < round(1000 * shares_at([flat], level)[0])]

    (gone,) = solved(plan, lambda masks: float((~masks[0]).sum()), 0.5, 1000.0)
    assert int(gone.sum()) == 500


curves = st.lists(st.lists(st.floats(-1, 20), min_size=3, max_size=3), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(losses=curves, amount=st.floats(0.02, 0.9), one=st.floats(0, 1), other=st.floats(0, 1))
def test_the_amount_is_met_and_shares_rise_with_the_level(losses, amount, one, other):
    found = [Sensitivity(str(row), tuple(zip((0.0, 0.3, 0.7, 0.97), (0.0, *row), strict=True))) for row in losses]
    sizes = [3 + 7 * index for index in range(len(found))]
    shares = dealt_out(found, sizes, amount)
    assert sum(map(float.__mul__, shares, map(float, sizes))) == pytest.approx(amount * sum(sizes), rel=1e-4)
    low, high = (shares_at(found, level) for level in sorted((one, other)))
    assert all(a <= b + 1e-12 for a, b in zip(low, high, strict=True))
    assert shares_at(found, 0.0) == [0.0] * len(found)
    assert shares_at(found, 1.0) == [0.97] * len(found)


def test_what_is_measured_is_the_rise_of_the_validation_loss_and_the_network_is_as_before():
    plotted = []
    run = make_run(plotter=plotted.append)
    model = make("mlp").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight = model.layers[1].weight

    @contextmanager
    def without(share):
        with restoring([weight]), torch.no_grad():
            weight[: round(share * 32)] = 0
            yield

    (found,) = measured(model, {"layers.1": without}, 0.5, run)
    assert [share for share, _ in found.points] == [0.0, 0.25, 0.5, 0.75, 0.9]
    split = run.splits.validation.columns
    model.eval()
    dense = float(F.cross_entropy(model(split["image"]), split["label"]).detach())
    with without(0.75):
        cut = float(F.cross_entropy(model(split["image"]), split["label"]).detach())
    assert found.points[3][1] == pytest.approx(cut - dense, abs=1e-5)
    assert validation_loss(model, run) == pytest.approx(dense, abs=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert plotted[0].name == "sensitivity of layers.1"
    assert plotted[0].points == found.points
