"""Saturation: bounds of least error, the published ones among them, and what they are good for."""

from __future__ import annotations

import pytest
import torch
from compress_clip import ClipRange
from compress_clip.saturation import (
    gauss_bound,
    laplace_bound,
    levels,
    measured_bound,
    percentile_bound,
    rounded,
    saturate,
)
from compress_quantize import Quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from compress_core.testing import Epochs
from compress_core.weights import weights
from tests.support import MLP, make, make_run

PAPER = {2: 2 / 4, 3: 2 / 8, 4: 2 / 16}
"""The step of the grid of Banner et al. for a bound of 1, by bits."""


def sampled(kind: str, rows: int = 3, entries: int = 100_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "gauss":
        return torch.randn(rows, entries, generator=generator)
    uniform = torch.rand(rows, entries, generator=generator) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs())


def error(weight: torch.Tensor, bound: torch.Tensor, bits: int) -> torch.Tensor:
    return (weight - rounded(weight, bound, bits)).square().mean(1)


@pytest.mark.parametrize(("bits", "laplace", "gauss"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55)])
def test_the_closed_forms_give_the_published_bounds(bits, laplace, gauss):
    assert laplace_bound(1.0, PAPER[bits]) == pytest.approx(laplace, abs=0.01)
    assert laplace_bound(0.02, PAPER[bits]) == pytest.approx(0.02 * laplace, rel=0.003)
    assert gauss_bound(1.0, PAPER[bits]) == pytest.approx(gauss, abs=0.01)
    assert gauss_bound(3.0, PAPER[bits]) == pytest.approx(3 * gauss, rel=0.005)


@pytest.mark.parametrize("kind", ["laplace", "gauss"])
@pytest.mark.parametrize("bits", [4, 5])
def test_the_measured_bound_of_a_known_distribution_is_that_of_its_closed_form(kind, bits):
    closed = (laplace_bound if kind == "laplace" else gauss_bound)(1.0, 1 / levels(bits))
    assert measured_bound(sampled(kind), bits) == pytest.approx([closed] * 3, rel=0.04)


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 99), spread=st.floats(0.5, 3))
def test_no_bound_of_a_fine_search_has_a_smaller_error(bits, seed, spread):
    weight = torch.randn(2, 60, generator=torch.Generator().manual_seed(seed)).mul(spread).exp()
    found = error(weight, measured_bound(weight, bits), bits)
    largest = weight.abs().amax(1)
    fine = torch.stack([error(weight, largest * share, bits) for share in torch.linspace(0.001, 1, 1500)]).amin(0)
    assert (found <= fine * 1.1).all()
    assert (found <= error(weight, largest, bits)).all()


def test_four_bits_lose_a_multiple_less_with_a_bound_than_with_the_whole_range():
    weight = sampled("laplace")
    whole = error(weight, weight.abs().amax(1), 4)
    assert (error(weight, measured_bound(weight, 4), 4) < whole / 3).all()


def test_a_percentile_is_the_magnitude_that_so_many_do_not_exceed():
    weight = torch.arange(1.0, 1001).reshape(1, -1) * torch.tensor([1.0, -1.0]).repeat(500)
    assert percentile_bound(weight, 99.0).tolist() == [990.0]
    assert int((saturate(weight, torch.tensor([990.0])) != weight).sum()) == 10


def test_the_integers_of_the_same_step_fill_the_bounds():
    model = make("mlp")
    with torch.no_grad():
        model.layers[1].weight[:, 3] *= 8
    run = make_run()
    held = apply_techniques(model, [ClipRange(percentile=95)], run)
    integers = apply_techniques(model, [Quantize(), ClipRange(percentile=95)], run)
    scale = held.layers[1].weight.detach().abs().amax(1) / 127
    assert torch.allclose(integers.layers[1].scale, scale)
    whole = model.layers[1].weight.detach().abs().amax(1) / 127
    assert scale.mean() < 0.5 * whole.mean()


@pytest.mark.parametrize("method", ["measured", "laplace", "gauss"])
def test_the_bound_of_what_is_left_does_not_depend_on_how_much_was_clipped(method):
    dense, sparse = nn.Sequential(nn.Linear(1000, 1, bias=False)), nn.Sequential(nn.Linear(10_000, 1, bias=False))
    with torch.no_grad():
        dense[0].weight.copy_(sampled("laplace", 1, 1000))
        sparse[0].weight.zero_()[:, ::10] = dense[0].weight
    held = [ClipRange(bits=3, method=method).apply(net, make_run())[0].weight.detach() for net in (dense, sparse)]
    assert torch.allclose(held[1][:, ::10], held[0], rtol=1e-5)
    assert held[0].abs().max() < sampled("laplace", 1, 1000).abs().max()


def test_a_row_of_zeros_stays_zero():
    weight = torch.zeros(2, 5)
    assert measured_bound(weight, 4).tolist() == [0, 0]
    assert torch.equal(saturate(weight, torch.zeros(2)), weight)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gauss", {"bits": 3}),
        ("laplace", {"bits": 4}),
        ("laplace", {"bits": 4, "method": "laplace"}),
        ("gauss", {"bits": 3, "method": "gauss"}),
    ],
)
def test_weights_rounded_to_few_bits_are_nearer_to_themselves_within_their_bounds(kind, fields):
    model = MLP(256)
    with torch.no_grad():
        for place in weights(model):
            sample = sampled(kind, 1, place.parameter.numel()).reshape(place.parameter.shape)
            place.parameter.copy_(0.05 * sample)
    held = apply_techniques(model, [ClipRange(**fields, granularity="tensor")], make_run())
    before = after = 0.0
    for place in weights(model):
        weight, clipped = (
            tensor.detach().reshape(1, -1) for tensor in (place.parameter, held.get_parameter(place.name))
        )
        bits = fields["bits"]
        before += float((weight - rounded(weight, weight.abs().amax(1), bits)).square().sum())
        after += float((weight - rounded(clipped, clipped.abs().amax(1), bits)).square().sum())
    assert after < 0.8 * before


def test_a_trained_network_keeps_more_of_its_quality_in_three_bits():
    model = apply_techniques(make("mlp"), [Epochs(epochs=4)], make_run())
    with torch.no_grad():
        for index in (1, 3):
            model.layers[index].weight[0, 5] = 3.0  # outliers
    run = make_run()
    qualities = []
    for found in (model, apply_techniques(model, [ClipRange(bits=3, granularity="tensor")], run)):
        for place in weights(found):
            row = place.parameter.detach().reshape(1, -1)
            place.parameter.detach().copy_(rounded(row, row.abs().amax(1), 3).reshape_as(place.parameter))
        qualities.append(run.evaluate(found).value)
    assert qualities[1] > qualities[0] + 0.02


def test_each_output_channel_or_each_tensor_has_a_bound():
    model = make("conv")
    by_channel = apply_techniques(model, [ClipRange(percentile=90)], make_run())
    by_tensor = apply_techniques(model, [ClipRange(percentile=90, granularity="tensor")], make_run())
    weight = model.blocks[1].conv1.weight.detach()
    bounds = percentile_bound(weight.flatten(1), 90)
    assert torch.equal(by_channel.blocks[1].conv1.weight.flatten(1).abs().amax(1), bounds)
    assert by_tensor.blocks[1].conv1.weight.abs().max() == percentile_bound(weight.reshape(1, -1), 90)


def test_the_output_channels_of_a_transposed_convolution_lie_on_its_second_axis():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 10))
    with torch.no_grad():
        model[0].weight[:, 2] *= 10
    held = apply_techniques(model, [ClipRange(percentile=80)], make_run())
    rows = model[0].weight.detach().movedim(1, 0).flatten(1)
    assert torch.equal(held[0].weight.movedim(1, 0).flatten(1), saturate(rows, percentile_bound(rows, 80)))


def test_removed_weights_norms_biases_and_skipped_layers_stay():
    model = make("conv")
    with torch.no_grad():
        model.stem.weight[0] = 0
    held = apply_techniques(model, [ClipRange(bits=3, skip=("head",))], make_run())
    assert not held.stem.weight[0].any()
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, held.get_parameter(name))
        assert same == (parameter.ndim < 2 or name.startswith("head")), name


def test_it_says_how_many_weights_were_beyond_and_that_nothing_changed(tmp_path):
    said: list[str] = []
    model = make("mlp")
    run = make_run(teller=said.append)
    held = apply_techniques(model, [ClipRange(percentile=75)], run)
    count = sum(int((one != other).sum()) for one, other in zip(model.parameters(), held.parameters(), strict=True))
    assert said == [f"clip-range: {count} of 3392 weights in 3 tensors were beyond their bound"]
    apply_techniques(held, [ClipRange(percentile=75)], run)
    assert "nothing changed" in said[1]
    save(held, tmp_path / "model", factory="tests.support:MLP")
    assert torch.equal(load(tmp_path / "model", factory="tests.support:MLP").layers[1].weight, held.layers[1].weight)


@pytest.mark.parametrize(
    "fields",
    [{}, {"bits": 4, "percentile": 99}, {"bits": 1}, {"percentile": 100}, {"percentile": 99, "method": "laplace"}],
)
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        ClipRange(**fields)


def test_a_network_without_weights_is_an_error():
    with pytest.raises(ModelError, match="no weights"):
        apply_techniques(make("mlp"), [ClipRange(bits=4, skip=("*",))], make_run())
