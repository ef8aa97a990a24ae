"""How the ranges of edges and the steps of weights are found: closed forms, brute force, other implementations."""

from __future__ import annotations

import pytest
import torch
from compress_quantize import Quantize
from compress_quantize.affine import asymmetric_grid, dequantize, quantize
from compress_quantize.observers import MOMENTUM, ActivationQuantizer, Quantizer
from compress_quantize.observing import BINS, Histogram, Observing, divergence, least_divergence_range, magnitudes
from compress_quantize.weight_grids import WeightGrid, squared_error
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.ao.quantization import MovingAverageMinMaxObserver

from compress_core.applying import apply_techniques
from tests.plugins.test_quantize import trained
from tests.support import make_run

SEEDS = st.integers(0, 2**31)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(kind, batches, **fields):
    quantizer = ActivationQuantizer(Observing(kind, **fields))
    quantizer.restart()
    for batch in batches:
        assert torch.equal(quantizer(batch), batch)
    quantizer.settle()
    return float(quantizer.low), float(quantizer.high)


def rounding_error(x, low, high, levels=255):
    scale, zero_point = asymmetric_grid(torch.tensor(low), torch.tensor(high), levels)
    return float((x - dequantize(quantize(x, scale, zero_point, 0, levels), scale, zero_point)).square().sum())


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, spreads=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5))
def test_a_histogram_that_widens_counts_as_one_of_the_last_width_would(seed, spreads):
    histogram, values = Histogram(), []
    for index, spread in enumerate(spreads):
        values.append(normal(300, seed=seed + index).relu() * spread - spread / 3 * (index % 2))
        histogram.add(values[-1])
    values = torch.cat(values).double()
    expected = torch.bincount(torch.floor(values[values != 0] / histogram.width).long() - histogram.first)
    assert torch.equal(histogram.counts[: len(expected)], expected.double())
    assert not histogram.counts[len(expected) :].any()
    assert histogram.zeros == (values == 0).sum()
    assert len(histogram.counts) <= BINS
    assert histogram.first <= 0 <= histogram.first + len(histogram.counts)


def test_min_and_max_are_those_of_all_batches():
    assert calibrated("minmax", [normal(50), torch.tensor([-7.0, 2.0]), torch.tensor([1.0, 9.0])]) == (-7.0, 9.0)


def test_the_moving_average_is_that_of_torch():
    batches = [normal(200, seed=seed) * (1 + seed) for seed in range(6)]
    other = MovingAverageMinMaxObserver(averaging_constant=MOMENTUM, dtype=torch.quint8)
    for batch in batches:
        other(batch)
    low, high = calibrated("moving-average", batches)
    assert (low, high) == pytest.approx((float(other.min_val), float(other.max_val)), rel=1e-6)


def test_a_percentile_is_the_mean_of_the_batches_quantiles():
    batches = [torch.arange(1001.0) * factor for factor in (1, 2, 3)]
    low, high = calibrated("percentile", batches, percentile=99.0)
    assert high == pytest.approx(2 * 990, rel=0.002)
    assert low == pytest.approx(2 * 10, rel=0.1)


@pytest.mark.parametrize("levels", [255, 15, 7])
@pytest.mark.parametrize("kind", ["normal", "heavy", "rectified", "shifted"])
def test_the_least_error_is_found_as_a_search_over_all_ranges_finds_it(kind, levels):
    x = normal(20_000)
    x = {"normal": x, "heavy": x**3, "rectified": (x**3).relu(), "shifted": x.exp() - 1}[kind]
    low, high = calibrated("mse", [x[:7000], x[7000:]], levels=levels)
    ends = torch.linspace(0.05, 1, 20)
    lows = [0.0] if x.min() == 0 else [float(x.min() * end) for end in ends]
    best = min(rounding_error(x, one, float(x.max() * end), levels) for one in lows for end in ends)
    assert rounding_error(x, low, high, levels) <= best * 1.05
    assert rounding_error(x, low, high, levels) <= rounding_error(x, float(x.min()), float(x.max()), levels) * 1.001


def test_an_outlier_is_cut_off_by_least_error_and_by_divergence_at_4_bits():
    x = torch.cat([normal(10_000).abs(), torch.tensor([100.0])])
    for kind in ("mse", "entropy"):
        low, high = calibrated(kind, [x], levels=15)
        assert low == 0
        assert 2 < high < 50


def migacz(counts, steps, candidates):
    """The pseudo-code of the slides, step by step."""
    found = {}
    for size in candidates:
        reference = [float(count) for count in counts[:size]]
        reference[-1] += float(counts[size:].sum())
        rounded = [0.0] * size
        for level in range(steps):
            bins = [index for index in range(size) if index * steps // size == level]
            held = [index for index in bins if reference[index] > 0]
            for index in held:
                rounded[index] = sum(float(counts[index]) for index in bins) / len(held)
        p, q = (torch.tensor(side, dtype=torch.float64) for side in (reference, rounded))
        p, q = p / p.sum(), q / q.sum()
        found[size] = float(sum(one * (one / other).log() for one, other in zip(p, q, strict=True) if one > 0))
    return found


def test_the_divergence_is_that_of_the_published_algorithm():
    histogram = Histogram()
    histogram.add((normal(5000) ** 3).abs())
    counts = magnitudes(histogram)
    expected = migacz(counts, 16, sizes := [16, 40, 100, 333])
    assert [divergence(counts, size, 16) for size in sizes] == pytest.approx([expected[size] for size in sizes])
    _, high = least_divergence_range(histogram, 15)
    chosen = divergence(counts, round(float(high) / histogram.width), 16)
    assert chosen <= min(divergence(counts, size, 16) for size in range(16, len(counts), 101)) * 1.05


def test_a_constant_and_an_empty_edge_have_a_range():
    for kind in ("mse", "entropy"):
        assert calibrated(kind, [torch.zeros(5)]) == (0.0, 0.0)
        low, high = calibrated(kind, [torch.full((100,), 3.0)])
        assert low == 0
        assert high == pytest.approx(3.0, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, bits=st.sampled_from([8, 4, 3]), per_tensor=st.booleans())
def test_steps_of_least_error_are_those_of_a_search_and_never_worse_than_the_range(seed, bits, per_tensor):
    weight = normal(4, 60, seed=seed) * torch.tensor([[1.0], [0.1], [3.0], [0.0]])
    wide, narrow = (WeightGrid(bits, per_tensor, least).scale(weight) for least in (False, True))
    highest = 2 ** (bits - 1) - 1
    assert wide.shape == narrow.shape == (4,)
    errors = [squared_error(weight, scale, highest).sum() for scale in (wide, narrow)]
    assert errors[1] <= errors[0] * (1 + 1e-6)
    searched = [squared_error(weight, wide * (part / 40), highest) for part in range(4, 41)]
    best = torch.stack(searched).sum(1).min() if per_tensor else torch.stack(searched).amin(0).sum()
    assert errors[1] <= best * 1.01 + 1e-9
    assert (len(wide.unique()) == 1) == per_tensor


def test_least_error_gains_at_4_bits_and_next_to_nothing_at_8():
    weight = normal(8, 1000)
    gains = []
    for bits, highest in ((4, 7), (8, 127)):
        scales = [WeightGrid(bits, least_error=least).scale(weight) for least in (False, True)]
        errors = [float(squared_error(weight, scale, highest).sum()) for scale in scales]
        gains.append(1 - errors[1] / errors[0])
    assert gains[0] > 0.2
    assert gains[1] < 0.1


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "mse", "entropy"])
def test_every_observer_keeps_the_quality(observer):
    run = make_run()
    model = trained("conv")
    small = apply_techniques(model, [Quantize(observer=observer, weight_range="mse")], run)
    assert run.evaluate(small).value >= run.evaluate(model).value - 0.01
    assert all(module.scale > 0 for module in small.modules() if isinstance(module, Quantizer))


def test_a_percentile_without_its_observer_is_refused():
    with pytest.raises(ValidationError, match="`percentile` belongs to `observer: percentile`"):
        Quantize(percentile=99.9, observer="mse")
    assert Quantize(percentile=99.9, observer="percentile").percentile == 99.9
