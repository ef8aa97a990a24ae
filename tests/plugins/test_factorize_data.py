"""Factors that keep what a layer answers: the least loss a rank allows, known before, and measured the same."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from compress_factorize import Factorize
from compress_factorize.inputs import MOST, Inputs, Patches, _Sums, inputs_of
from compress_factorize.lowrank import matrix_factors, spatial_factors, tucker_factors
from compress_factorize.methods import CONVOLUTIONS, method_of
from compress_factorize.pieces import Area, product_of, weight_of
from compress_factorize.responses import (
    kept_by_channel_ranks,
    kept_by_spatial_rank,
    response_factors,
    ridged,
    root_of,
    spatial_pieces,
    tucker_pieces,
    whitened,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.catalog import catalog
from compress_core.errors import ModelError
from compress_core.testing.digits import Epochs
from tests.support import make, make_run

AREA = Area(64, 64, 64)
SEEDS = st.integers(0, 10_000)
SEEING = ("spatial", "tucker", "channel")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(size, seed=0, directions=None):
    """Second moments of inputs that are far from white, and span only some directions."""
    mix = random(size, directions or size, seed=seed) * torch.logspace(0, -2, directions or size, dtype=torch.float64)
    return mix @ mix.T


def loss(lost, moment):
    matrix = lost.flatten(1)
    return float((matrix @ moment).mul(matrix).sum())


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data(), seed=SEEDS)
def test_for_white_inputs_it_is_the_plain_decomposition(rows, columns, data, seed):
    matrix = random(rows, columns, seed=seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    white = torch.eye(columns, dtype=torch.float64)
    (left, right), (plain, other) = response_factors(matrix, white, rank), matrix_factors(matrix, rank)
    torch.testing.assert_close(left @ right, plain @ other, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 9), columns=st.integers(2, 9), data=st.data(), seed=SEEDS)
def test_the_loss_of_a_matrix_is_known_before_and_the_least_of_its_rank(rows, columns, data, seed):
    matrix, seen = random(rows, columns, seed=seed), moment(columns, seed + 1)
    rank = data.draw(st.integers(1, min(rows, columns) - 1))
    left, right = response_factors(matrix, seen, rank)
    found = loss(matrix - left @ right, seen)
    values = torch.linalg.svdvals(whitened(matrix, seen))
    assert found == pytest.approx(float(values[rank:].square().sum()), rel=1e-3, abs=1e-5 * loss(matrix, seen))
    for plain, other in (matrix_factors(matrix, rank), (random(rows, rank, seed=seed), random(rank, columns))):
        assert found <= loss(matrix - plain @ other, seen) + 1e-5 * loss(matrix, seen)


def test_the_loss_is_that_of_the_textbook_whitening_by_a_cholesky_factor():
    # SVD-LLM, algorithm 1: C = S S^T, W S = U D V^T, W' = U_r D_r V_r^T S^-1
    matrix, seen = random(7, 5), moment(5, seed=3) + 0.01 * torch.eye(5)
    lower = torch.linalg.cholesky(seen)
    u, d, v = torch.linalg.svd(matrix @ lower, full_matrices=False)
    wanted = (u[:, :2] * d[:2]) @ v[:2] @ torch.linalg.inv(lower)
    left, right = response_factors(matrix, seen, 2)
    torch.testing.assert_close(left @ right, wanted, rtol=1e-4, atol=1e-5)


def test_inputs_that_span_few_directions_lose_nothing_at_their_rank():
    matrix, seen = random(12, 10), moment(10, directions=3)
    left, right = response_factors(matrix, seen, 3)
    assert torch.isfinite(left).all() and torch.isfinite(right).all()
    assert loss(matrix - left @ right, seen) < 1e-9 * loss(matrix, seen)
    plain, other = matrix_factors(matrix, 3)
    assert loss(matrix - plain @ other, seen) > 0.01 * loss(matrix, seen)


def test_where_the_calibration_shows_nothing_the_weight_decides():
    matrix = torch.diag(torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64))
    seen = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    left, right = response_factors(matrix, seen, 2)
    torch.testing.assert_close(left @ right, torch.diag(torch.tensor([1.0, 5.0, 0.0], dtype=torch.float64)))


@pytest.mark.parametrize("seed", range(4))
def test_a_spatial_chain_loses_less_than_the_plain_one_and_no_more_than_was_told(seed):
    weight, seen = random(6, 5, 3, 3, seed=seed), moment(45, seed + 1)
    whole, told = loss(weight, seen), kept_by_spatial_rank(weight, seen)
    assert (told.diff() >= -1e-12).all() and told[-1] == pytest.approx(1.0, abs=1e-4)
    for rank in (1, 3, 6, 10):
        found, start, plain = (
            loss(weight - torch.einsum("riha,oraw->oihw", *pieces), seen) / whole
            for pieces in (
                spatial_pieces(weight, seen, rank),
                spatial_pieces(weight, seen, rank, rounds=0),
                spatial_factors(weight, rank),
            )
        )
        assert start == pytest.approx(1 - float(told[rank - 1]), abs=1e-4)
        assert found <= start + 1e-9
        assert found < plain


@pytest.mark.parametrize("seed", range(4))
def test_a_tucker_chain_loses_less_than_the_plain_one_and_no_more_than_was_told(seed):
    weight, seen = random(6, 5, 3, 3, seed=seed), moment(45, seed + 1)
    whole, told = loss(weight, seen), kept_by_channel_ranks(weight, seen)
    assert (told.diff(dim=0) >= -1e-12).all() and (told.diff(dim=1) >= -1e-12).all()
    assert told[-1, -1] == pytest.approx(1.0, abs=1e-4)
    for ranks in ((2, 2), (4, 3), (6, 3), (3, 5)):
        found, start, plain = (
            loss(weight - torch.einsum("rshw,or,is->oihw", core, basis_out, basis_in), seen) / whole
            for basis_in, core, basis_out in (
                tucker_pieces(weight, seen, *ranks),
                tucker_pieces(weight, seen, *ranks, rounds=0),
                tucker_factors(weight, *ranks),
            )
        )
        assert start <= 1 - float(told[ranks[0] - 1, ranks[1] - 1]) + 1e-4
        assert found <= start + 1e-9
        assert found < plain


def test_a_root_of_the_moments_squares_to_them():
    seen = moment(8, directions=4)
    root = root_of(seen)
    torch.testing.assert_close(root @ root.T, seen, rtol=1e-8, atol=1e-8)
    assert ridged(torch.zeros(3, 3, dtype=torch.float64)).diagonal().min() > 0


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"padding": 1},
        {"stride": 2, "padding": (1, 2), "dilation": (1, 2)},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "circular", "stride": 3},
    ],
    ids=str,
)
def test_patches_are_what_a_convolution_sees(geometry):
    layer = nn.Conv2d(3, 4, 3, **geometry)
    image = random(2, 3, 9, 11).float()
    wanted = layer(image).permute(0, 2, 3, 1).reshape(-1, 4)
    seen = Patches(layer, image)
    assert (len(seen), seen.length) == (len(wanted), 27)
    found = seen.take() @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    some = torch.tensor([len(wanted) - 1, 0, 2])
    assert torch.equal(seen.take(some), seen.take()[some])


def test_only_the_patches_that_are_drawn_are_built():
    layer, image = nn.Conv2d(8, 4, 3, padding=1), random(8, 8, 96, 96).float()
    all_of_them = 8 * 96 * 96 * 72 * 4
    sums = _Sums(layer, torch.Generator().manual_seed(0))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sums.take(layer, (image,))
    assert sums.count == MOST
    assert max(event.cpu_memory_usage for event in profile.events()) < all_of_them / 4


@pytest.mark.parametrize("method", ["spatial", "tucker", "channel"])
def test_a_layer_that_sees_the_same_everywhere_is_fitted_by_its_weight(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(256, 10))
    said = [], []
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.linspace(0.1, 0.9, 8))
    for fit, told in zip(("data", "weight"), said, strict=True):
        apply_techniques(
            model, [Factorize(energy=0.8, method=method, skip=("4",), fit=fit)], make_run(teller=told.append)
        )
    assert said[0] == said[1] and "1 layer replaced" in said[0][0]


def test_the_moments_of_the_inputs_are_those_of_all_their_positions():
    run, model = make_run(), nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3, bias=False))
    found = inputs_of(model, run, {"1": model[1], "2": model[2]})
    seen = torch.cat([batch["image"].flatten(1) for batch in run.calibration()]).double()
    torch.testing.assert_close(found["1"].moment, torch.cov(seen.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["1"].mean, seen.mean(0), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        answers = model[1](seen.float()).double()
    torch.testing.assert_close(found["2"].moment, answers.T @ answers / len(seen), rtol=1e-4, atol=1e-5)
    assert found["2"].mean is None
    assert not model[1]._forward_pre_hooks


@cache
def trained():
    return apply_techniques(make("conv"), [Epochs(epochs=4)], make_run())


@pytest.mark.parametrize("method", SEEING)
@pytest.mark.parametrize("path", ["blocks.1.conv2", "head"])
def test_the_told_error_is_the_measured_one_and_below_the_plain_chains(method, path):
    run, model = make_run(), trained()
    layer = model.get_submodule(path)
    inputs = inputs_of(model, run, {path: layer})[path]
    how = method_of(layer, method)
    every = how.candidates(layer, AREA, inputs=inputs)
    ranks = every.ranks[(every.ranks * 2 <= every.ranks.amax(0)).all(1)][-1].tolist()
    told = how.factors(layer, ranks, inputs)
    features = run.features(model, [path])[path]
    with torch.no_grad():
        errors = []
        for pieces in (told.pieces, how.factors(layer, ranks).pieces):
            pairs = [(layer(x[0]), pieces(x[0])) for x in features.inputs]
            lost = sum(float((y - z).double().square().sum()) for y, z in pairs)
            answers = torch.cat([y.movedim(1, -1).reshape(-1, y.shape[1]) for y, _ in pairs]).double()
            spread = answers - answers.mean(0) if layer.bias is not None else answers
            errors.append((lost / float(spread.square().sum())) ** 0.5)
    measured, plain = errors
    assert measured == pytest.approx(told.error, rel=0.05)
    assert measured < plain


def test_the_bias_takes_over_the_mean_of_what_is_lost():
    layer = nn.Linear(6, 5)
    x = random(500, 6) * 0.1 + 4.0
    mean = x.mean(0)
    inputs = Inputs(torch.cov(x.T, correction=0), mean)
    found = CONVOLUTIONS["channel"].factors(layer, [2], inputs)
    with torch.no_grad():
        difference = (layer(x.float()) - found.pieces(x.float())).double()
    assert difference.mean(0).abs().max() < 1e-5
    lost = weight_of(layer) - product_of(CONVOLUTIONS["channel"].split(layer, [2], inputs))
    assert found.error == pytest.approx((loss(lost, inputs.moment) / loss(weight_of(layer), inputs.moment)) ** 0.5)
    assert found.pieces[-1].bias.grad_fn is None and found.pieces[-1].bias.requires_grad


@pytest.mark.parametrize("method", SEEING)
def test_data_lose_less_quality_than_the_weight_at_the_same_multiplications(method):
    run, model = make_run(), trained()
    dense, data, weight = (
        run.evaluate(net).value
        for net in (
            model,
            *(
                apply_techniques(
                    model, [Factorize(ratio=0.35, of="macs", fit=fit, method=method, recalibrate=False)], run
                )
                for fit in ("data", "weight")
            ),
        )
    )
    assert dense > 0.9
    assert data > weight + 0.05


def test_a_layer_that_answers_nothing_to_the_data_is_fitted_by_its_weight():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].bias.fill_(-1e6)
    said: list[str] = []
    found = Factorize(ratio=0.5).apply(model, make_run(teller=said.append))
    assert isinstance(found[4], nn.Sequential) or isinstance(found[3], nn.Sequential)
    assert all(torch.isfinite(parameter).all() for parameter in found.parameters())


def test_a_layer_that_is_too_wide_for_moments_is_fitted_by_its_weight_and_named(monkeypatch):
    monkeypatch.setattr("compress_factorize.ranks.WIDEST", 40)
    said = []
    found = apply_techniques(make("mlp"), [Factorize(rank=4)], make_run(teller=said.append))
    assert said[0] == "factorize: fitted by the weight, which takes more than 40 numbers at once: layers.1"
    monkeypatch.undo()
    plain = apply_techniques(make("mlp"), [Factorize(rank=4, fit="weight")], make_run())
    data = apply_techniques(make("mlp"), [Factorize(rank=4)], make_run())
    assert torch.equal(found.layers[1][0].weight, plain.layers[1][0].weight)
    assert torch.equal(found.layers[3][0].weight, data.layers[3][0].weight)
    assert not torch.equal(found.layers[1][0].weight, data.layers[1][0].weight)


def test_inputs_that_are_no_numbers_are_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"2: its inputs are not finite"):
        Factorize(ratio=0.5).apply(model, make_run())


def test_the_same_data_give_the_same_bytes_and_the_artifact_keeps_them(tmp_path):
    model = make("conv")
    one, other = (apply_techniques(model, [Factorize(ratio=0.4, of="macs")], make_run()) for _ in range(2))
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
    save(one, tmp_path / "model", factory="tests.support:ConvNet")
    again = load(tmp_path / "model", factory="tests.support:ConvNet")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in one.state_dict().items())


def test_factors_of_responses_export_to_onnx(tmp_path):
    run = make_run()
    model = apply_techniques(make("conv"), [Factorize(ratio=0.4)], run)
    onnx = catalog().exporters["onnx"]()
    onnx.export(model, tmp_path, run.example)
    arguments, keywords = run.example
    with torch.no_grad():
        torch.testing.assert_close(
            onnx.load(tmp_path, 1)(*arguments), model(*arguments, **keywords), atol=1e-4, rtol=1e-4
        )
