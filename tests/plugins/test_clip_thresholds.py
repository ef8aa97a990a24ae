"""Clipping by standard deviations, and by what the validation quality bears."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from compress_clip import Clip
from compress_clip.bisection import largest
from compress_clip.threshold import clip, threshold_of_deviations
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchmetrics import MeanSquaredError

from compress_core.applying import apply_techniques
from compress_core.data import Columns
from compress_core.measure import Curve
from compress_core.testing import Classification, Epochs
from compress_core.weights import weights
from tests.support import make, make_run


@pytest.fixture(scope="module")
def trained():
    return apply_techniques(make("mlp"), [Epochs(epochs=4)], make_run())


def zeros_of(model) -> float:
    tensors = [place.parameter for place in weights(model)]
    return sum(int((weight == 0).sum()) for weight in tensors) / sum(weight.numel() for weight in tensors)


def test_deviations_clip_the_share_of_a_normal_distribution_that_its_table_says():
    weight = torch.randn(400_000, generator=torch.Generator().manual_seed(0)) * 0.03
    for multiple, within in ((0.5, 0.3829), (1.0, 0.6827), (2.0, 0.9545)):
        threshold = threshold_of_deviations(weight, multiple)
        assert threshold == pytest.approx(0.03 * multiple, rel=0.01)
        assert float((clip(weight, threshold) == 0).float().mean()) == pytest.approx(within, abs=0.003)


def test_weights_that_have_gone_do_not_count_for_the_deviation():
    weight = torch.tensor([1.0, -1.0, 3.0, -3.0])
    assert threshold_of_deviations(weight, 2.0) == pytest.approx(2 * 5**0.5)
    assert threshold_of_deviations(torch.cat([weight, torch.zeros(50)]), 2.0) == pytest.approx(2 * 5**0.5)
    assert threshold_of_deviations(torch.zeros(5), 2.0) is None


def test_each_tensor_has_its_own_deviation(trained):
    clipped = apply_techniques(trained, [Clip(deviations=0.8, adjust=False)], make_run())
    for place in weights(trained):
        bound = 0.8 * place.parameter.detach().std(correction=0)
        kept = torch.where(place.parameter.abs() > bound, place.parameter, 0)
        assert torch.equal(clipped.get_parameter(place.name), kept)


@settings(max_examples=50, deadline=None)
@given(edge=st.floats(0, 1), steps=st.integers(1, 20))
def test_bisection_comes_within_a_step_below_the_edge(edge, steps):
    tried = []
    found = largest(lambda share: (tried.append(share), share <= edge)[1], steps)
    assert len(tried) == steps
    assert found <= edge <= found + 2.0**-steps
    assert found == 0 or found in tried


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_the_largest_share_goes_that_keeps_the_validation_quality(trained, scope):
    said, curves = [], []
    run = make_run(teller=said.append, plotter=curves.append)
    clipped = apply_techniques(trained, [Clip(max_loss=2.0, scope=scope)], run)
    (curve,) = curves
    dense, after = run.evaluate(trained).value, run.evaluate(clipped).value
    shares = dict(curve.points)
    chosen = max(share for share, value in shares.items() if 100 * (dense - value) <= 2.0 + 1e-9)
    assert shares[0.0] == dense
    assert shares[chosen] == pytest.approx(after, abs=0.003)
    assert 100 * (dense - after) <= 2.0
    assert 0.3 < zeros_of(clipped) < 0.95
    beyond = min(share for share in shares if share > chosen)
    assert beyond - chosen == pytest.approx(1 / 1024)
    worse = apply_techniques(trained, [Clip(share=beyond, scope=scope)], run)
    assert 100 * (dense - run.evaluate(worse).value) > 2.0
    assert said[0].startswith(f"clip: a share of {chosen:.4g} loses at most 2 points: validation accuracy {dense:.4f}")
    assert list(curve.points) == sorted(curve.points)


def test_more_may_go_where_more_may_be_lost_and_the_same_goes_again(trained):
    shares = [zeros_of(apply_techniques(trained, [Clip(max_loss=loss)], make_run())) for loss in (0.5, 5.0, 5.0)]
    assert shares[0] < shares[1] == shares[2]


def test_the_test_split_plays_no_part(trained):
    run = make_run()
    blind = replace(run, splits=replace(run.splits, test=Columns(run.splits.validation.take(torch.arange(1)))))
    one, other = (apply_techniques(trained, [Clip(max_loss=1.0)], each) for each in (run, blind))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Squares(Classification):
    """Judged by an error, of which less is better."""

    proportion = False

    def target(self, batch):
        """One number per class."""
        return torch.nn.functional.one_hot(batch["label"], 10).float()

    def metrics(self, logits):
        """The mean squared error."""
        return {"mse": MeanSquaredError()}


def test_an_error_may_grow_by_so_many_per_cent(trained):
    curves: list[Curve] = []
    run = make_run(task=Squares(), plotter=curves.append)
    clipped = apply_techniques(trained, [Clip(max_loss=10.0)], run)
    dense, after = run.evaluate(trained).value, run.evaluate(clipped).value
    assert after <= 1.1 * dense
    assert zeros_of(clipped) > 0.05
    assert curves[0].y == "mse"


def test_nothing_changes_if_weights_that_can_only_go_together_must_stay(trained):
    model = deepcopy(trained)
    with torch.no_grad():
        for place in weights(model):
            place.parameter.copy_(place.parameter.sign() * 0.1)
    said: list[str] = []
    run = make_run(teller=said.append)
    assert run.evaluate(model).value > 0.3
    result = apply_techniques(model, [Clip(max_loss=0.5)], run)
    assert zeros_of(result) == 0
    assert "nothing changed" in said[-1]


@pytest.mark.parametrize(
    "fields",
    [
        {"deviations": 0},
        {"deviations": 1, "scope": "global"},
        {"deviations": 1, "share": 0.1},
        {"max_loss": -1},
        {"max_loss": 1, "threshold": 0.1},
    ],
)
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        Clip(**fields)
