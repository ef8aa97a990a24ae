"""Figures against closed forms and published values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress_core.artifact import save
from compress_core.errors import ModelError
from compress_core.files import to_json
from compress_core.measure import Counts, Metrics, Quality, bootstrap, counts, quality, shipped_bytes, wilson
from tests.support import Classification, digits, make, make_run


@pytest.mark.parametrize(
    ("successes", "examples", "low", "high"),
    [
        # Newcombe 1998, Two-sided confidence intervals for the single proportion, Table I, method 3 (score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_the_interval_of_a_share_is_the_published_one(successes, examples, low, high):
    found = wilson(successes / examples, examples)
    assert found == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_interval_of_a_share_holds_it_and_stays_within_0_and_1(examples, share):
    low, high = wilson(share, examples)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    mirrored = wilson(1 - share, examples)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


def run_counts(model: nn.Module, *inputs: torch.Tensor, **named: torch.Tensor):
    return counts(model, (inputs, named))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_linear_layer_has_inputs_times_outputs_macs(batch):
    found = run_counts(nn.Linear(7, 5), torch.zeros(batch, 7))
    assert (found.macs, found.parameters) == (7 * 5, 7 * 5 + 5)


@pytest.mark.parametrize(
    ("conv", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 3 * 8 * 9 * 10 * 12),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), 3 * 8 * 9 * 5 * 6),
        (nn.Conv2d(6, 6, 3, groups=6), 6 * 9 * 8 * 10),
        (nn.Conv2d(6, 4, (1, 5), groups=2, bias=False), 6 * 4 // 2 * 5 * 10 * 8),
        (nn.Conv2d(3, 8, 3, dilation=2), 3 * 8 * 9 * 6 * 8),
    ],
)
def test_a_convolution_has_its_closed_form_of_macs(conv, macs):
    assert run_counts(conv, torch.zeros(2, conv.in_channels, 10, 12)).macs == macs


def test_named_inputs_and_dictionaries_are_counted_for_one_example():
    assert run_counts(nn.Linear(4, 2), input=torch.zeros(5, 4)).macs == 8

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, columns):
            return self.inner(columns["x"])

    assert counts(Named(), (({"x": torch.zeros(5, 4)},), {})).macs == 8


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_recurrent_layer_has_its_closed_form_of_macs(kind, gates, directions):
    layer = kind(8, 16, 2, batch_first=True, bidirectional=directions == 2)
    first, second = 16 * (8 + 16), 16 * (16 * directions + 16)
    assert run_counts(layer, torch.zeros(3, 5, 8)).macs == 5 * directions * gates * (first + second)


def test_an_attention_layer_has_its_closed_form_of_macs():
    tokens, width, hidden, layers = 8, 16, 32, 2
    projections = tokens * (4 * width * width + 2 * width * hidden)
    scores_and_sums = 2 * tokens * tokens * width
    wanted = tokens * 8 * width + layers * (projections + scores_and_sums) + width * 10
    assert run_counts(make("transformer"), torch.zeros(3, 1, 8, 8)).macs == wanted


def test_zeros_are_counted_as_macs_and_not_as_non_zeros():
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight[0].zero_()
        model.bias.fill_(1)
    found = run_counts(model, torch.zeros(1, 4))
    assert (found.parameters, found.nonzero, found.macs) == (20, 16, 16)


def test_counting_keeps_each_module_s_mode_and_statistics():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout()).train()
    model[1].eval()
    before = model[1].running_mean.clone()
    run_counts(model, torch.randn(4, 1, 3, 3))
    assert [module.training for module in model] == [True, False, True]
    assert torch.equal(model[1].running_mean, before)


class Always(nn.Module):
    """Says the right class for the first `right` of the digits, and the next one for the others."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, image):
        label = image[:, 0, 0, 0].long()
        return nn.functional.one_hot((label + (image[:, 0, 0, 1] < self.wrong).long()) % 10, 10).float()


def labelled(count: int, size: int):
    for start in range(0, count, size):
        index = torch.arange(start, min(start + size, count))
        image = torch.zeros(len(index), 1, 1, 2)
        image[:, 0, 0, 0], image[:, 0, 0, 1] = index % 10, index
        yield {"image": image, "label": index % 10}


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_quality_is_over_all_examples_however_they_are_cut(size):
    found = quality(Always(wrong=19), labelled(100, size), Classification())
    assert (found.name, found.examples, found.higher_is_better) == ("accuracy", 100, True)
    assert found.value == pytest.approx(0.81)
    assert (found.low, found.high) == pytest.approx(wilson(0.81, 100))


def test_measuring_keeps_each_module_s_mode():
    model = make("conv").train()
    model.bn.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_run().evaluate(model)
    assert model.training
    assert not model.bn.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_selection_sees_the_validation_split_and_not_the_test():
    model = make("mlp")
    split = digits().validation
    found = make_run().evaluate(model)
    with torch.no_grad():
        right = (model(split.columns["image"]).argmax(1) == split.columns["label"]).float().mean()
    assert found.examples == len(split)
    assert found.value == pytest.approx(float(right))


class Peak:
    """The largest logit, as a metric."""

    higher_is_better = True

    def reset(self) -> None: ...

    def __call__(self, logits, target):
        return logits.max()


class Peaks(Classification):
    """A quality without a bound."""

    name = "peaks"
    proportion = False

    def metrics(self, logits):
        return {"peak": Peak()}


class More(Classification):
    """The accuracy, and a metric that is defined and one that is not."""

    name = "more"

    def metrics(self, logits):
        return {**super().metrics(logits), "peak": Peak(), "nothing": lambda logits, target: float("nan")}


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
def test_a_quality_that_is_not_finite_is_refused_with_the_metrics_name(entry):
    with pytest.raises(ModelError, match=f"^quality: peak is {entry}"):
        quality(lambda image: torch.full((len(image), 10), entry), labelled(10, 5), Peaks())


def test_further_metrics_stand_beside_the_quality_in_the_metrics_of_a_step():
    found = quality(Always(wrong=19), labelled(100, 7), More())
    saved = json.loads(to_json(Metrics(found, 1, Counts(1, 1, 1)).to_dict()))
    assert saved["quality"]["name"] == "accuracy"
    assert saved["quality"]["also"] == {"peak": 1.0}


class Squares:
    """The mean square of the difference, as a metric."""

    def reset(self) -> None: ...

    def __call__(self, logits, target):
        return ((logits - target) ** 2).mean()


def test_the_bootstrap_interval_is_seeded_and_close_to_the_normal_one():
    logits = torch.randn(400, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(400)
    low, high = bootstrap(Squares(), logits, target)
    assert (low, high) == bootstrap(Squares(), logits, target)
    squares = logits**2
    spread = 1.96 * float(squares.std()) / 20
    assert low == pytest.approx(float(squares.mean()) - spread, abs=0.25 * spread)
    assert high == pytest.approx(float(squares.mean()) + spread, abs=0.25 * spread)


def test_better_is_strict_and_knows_its_direction():
    def value(number, higher=True):
        return Quality("q", number, 0, 1, 10, higher)

    assert value(0.1).better_than(None)
    assert value(0.2).better_than(value(0.1))
    assert not value(0.1).better_than(value(0.1))
    assert value(0.1, False).better_than(value(0.2, False))
    assert value(0.1).better_than(value(float("nan")))
    assert not value(float("nan")).better_than(value(0.1))


def test_points_are_hundredths_or_per_cent_of_an_error():
    accuracy = Quality("accuracy", 0.97, 0, 1, 10)
    worse, better = replace(accuracy, value=0.965), replace(accuracy, value=0.98)
    assert worse.points_below(accuracy) == pytest.approx(0.5)
    assert better.points_below(accuracy) == pytest.approx(-1)
    assert worse.within(0.5, accuracy)
    assert not worse.within(0.49, accuracy)
    assert better.within(0, accuracy)
    error = Quality("mse", 4.0, 0, 9, 10, higher_is_better=False)
    assert replace(error, value=4.2).points_below(error) == pytest.approx(5)
    assert not replace(error, value=4.2).within(4.9, error)
    assert replace(error, value=0.1).points_below(replace(error, value=0.0)) == float("inf")


def test_bytes_are_those_on_disk_with_the_manifest_a_model_needs(tmp_path):
    save(make("mlp"), tmp_path / "a", factory="tests.support:MLP")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert shipped_bytes(tmp_path / "a") == on_disk
    parameters = sum(parameter.numel() for parameter in make("mlp").parameters())
    assert on_disk > 4 * parameters
