"""More ways to split a convolution: CP, groups, depthwise-separable, and the reshape over the input channels."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from compress_export import Onnx
from compress_factorize import Factorize
from compress_factorize.cp import balanced, cp_factors, from_cp, kept_by_cp, trial_ranks
from compress_factorize.grouped import Group, group_matrices, grouped_factors, kept_by_group_rank
from compress_factorize.lowrank import kept_by_rank
from compress_factorize.methods import CONVOLUTIONS
from compress_factorize.narrowing import input_factors, input_matrix
from compress_factorize.pieces import Area, product_of, worthwhile
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.measure import counts
from compress_core.testing import checks_for
from tests.support import make, make_run

NEW = ("input", "cp", "separable", "group")
SQUARE = Area(64, 64, 64)
SEEDS = st.integers(0, 10_000)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, wanted):
    return float(torch.linalg.vector_norm(found.double() - wanted.double()) / torch.linalg.vector_norm(wanted.double()))


def ungrouped(filters, mixing, groups):
    """The kernel that a convolution in groups and a 1 x 1 behind it apply, filter by filter."""
    inputs = filters.shape[1]
    whole = torch.zeros(mixing.shape[0], inputs * groups, *filters.shape[2:], dtype=filters.dtype)
    for place, kernel in enumerate(filters):
        group = place // (len(filters) // groups)
        whole[:, group * inputs : (group + 1) * inputs] += mixing[:, place, 0, 0][:, None, None, None] * kernel
    return whole


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 6), each=st.integers(1, 3), groups=st.integers(1, 4), data=st.data(), seed=SEEDS)
def test_groups_lose_the_dropped_squares_of_every_group(outputs, each, groups, data, seed):
    weight = random(outputs, each * groups, 3, 2, seed=seed)
    values = torch.linalg.svdvals(torch.stack([part.flatten(1) for part in weight.chunk(groups, dim=1)]))
    rank = data.draw(st.integers(1, values.shape[1]))
    lost = (weight - ungrouped(*grouped_factors(weight, groups, rank), groups)).square().sum()
    assert lost == pytest.approx(float(values[:, rank:].square().sum()), abs=1e-9)
    kept = kept_by_group_rank(weight, groups)
    assert lost == pytest.approx(float((1 - kept[rank - 1]) * weight.square().sum()), abs=1e-9)
    assert (kept.diff() >= -1e-12).all() and kept[-1] == pytest.approx(1.0)


def test_one_group_is_the_singular_value_decomposition_over_the_outputs():
    weight = random(5, 4, 3, 3)
    assert torch.allclose(kept_by_group_rank(weight, 1), kept_by_rank(torch.linalg.svdvals(weight.flatten(1))))
    assert torch.equal(group_matrices(weight, 1)[0], weight.flatten(1))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 4), nearness=st.sampled_from([0.01, 0.3, 10.0]))
def test_no_other_filters_in_these_groups_are_nearer(seed, rank, nearness):
    weight, groups = random(6, 8, 3, 3, seed=seed), 4
    filters, mixing = grouped_factors(weight, groups, rank)
    best = (weight - ungrouped(filters, mixing, groups)).square().sum()
    other = filters + nearness * random(*filters.shape, seed=seed + 1)
    span = ungrouped(other, torch.eye(len(other), dtype=other.dtype)[:, :, None, None], groups).flatten(1)
    mixed = torch.linalg.lstsq(span.T, weight.flatten(1).T).solution.T @ span
    assert best <= (weight.flatten(1) - mixed).square().sum() + 1e-9


def test_groups_are_the_divisors_between_one_and_all():
    assert Group().numbers(12) == [2, 3, 4, 6]
    assert Group().numbers(7) == []
    assert len(worthwhile(Group(), nn.Conv2d(7, 9, 3), SQUARE)) == 0


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    data=st.data(),
    seed=SEEDS,
)
def test_fewer_input_channels_lose_the_dropped_squares_of_that_matrix(shape, data, seed):
    weight = random(*shape, seed=seed)
    values = torch.linalg.svdvals(input_matrix(weight))
    rank = data.draw(st.integers(1, len(values)))
    first, second = input_factors(weight, rank)
    assert first.shape == (rank, shape[1], 1, 1) and second.shape == (shape[0], rank, *shape[2:])
    lost = torch.linalg.vector_norm(weight - torch.einsum("riab,orhw->oihw", first, second))
    assert lost == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-9)


def test_a_kernel_of_few_terms_is_found_again():
    exact = from_cp((random(7, 3), random(6, 3, seed=1), random(3, 3, seed=2), random(3, 3, seed=3)))
    assert relative(from_cp(cp_factors(exact, 3, sweeps=500)), exact) < 1e-3
    assert relative(from_cp(cp_factors(exact, 2, sweeps=500)), exact) > 0.05


def test_more_terms_than_a_kernel_has_find_it_too():
    exact = torch.zeros(16, 8, 3, 3, dtype=torch.float64)
    exact[0, 0] = 3.0
    for rank in (2, 9, 30):
        found = cp_factors(exact, rank)
        assert relative(from_cp(found), exact) < 1e-3
        assert max(float(factor.abs().max()) for factor in found) < 1e3


def test_one_term_is_the_best_rank_one_tensor():
    # of a tensor with orthogonal terms, the best rank-one approximation is its largest term: Zhang and Golub 2001
    axes = [torch.linalg.qr(random(size, 2, seed=size))[0] for size in (6, 5, 3, 4)]
    exact = from_cp((axes[0] * torch.tensor([3.0, 1.0]), *axes[1:]))
    found = from_cp(cp_factors(exact, 1))
    assert torch.allclose(found, from_cp([axis[:, :1] * scale for axis, scale in zip(axes, (3, 1, 1, 1), strict=True)]))
    assert kept_by_cp(exact, 1) == pytest.approx(0.9, abs=1e-6)


def test_more_sweeps_never_keep_less_than_the_candidates_promise():
    weight = random(8, 6, 3, 3)
    for rank in (2, 5, 9):
        assert 1 - relative(from_cp(cp_factors(weight, rank)), weight) ** 2 >= kept_by_cp(weight, rank) - 1e-9


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 5))
def test_balanced_terms_are_the_same_and_equally_long(seed, rank):
    factors = [random(size, rank, seed=seed + size) * 10.0**size for size in (1, 2, 3, 4)]
    sizes = random(rank, seed=seed + 9)
    found = balanced(factors, sizes)
    assert torch.allclose(from_cp(found), torch.einsum("or,ir,yr,xr,r->oiyx", *factors, sizes))
    norms = torch.stack([factor.norm(dim=0) for factor in found])
    assert torch.allclose(norms, norms[:1].expand_as(norms))


def test_a_term_of_size_nothing_stays_nothing():
    found = balanced([torch.zeros(2, 1), *(torch.ones(2, 1) for _ in range(3))], torch.ones(1))
    assert not from_cp(found).any() and all(torch.isfinite(factor).all() for factor in found)


def test_the_same_seed_gives_the_same_terms_whoever_drew_before():
    weight = random(6, 5, 3, 3)
    first = cp_factors(weight, 8)
    np.random.seed(5)
    torch.rand(3)
    assert all(torch.equal(one, other) for one, other in zip(first, cp_factors(weight, 8), strict=True))


def test_ranks_that_are_tried_save_parameters():
    assert trial_ranks(36864, 134, 1)[-1] * 134 < 36864
    assert trial_ranks(36864, 134, 16)[0] % 16 == 0 and len(trial_ranks(36864, 134, 16)) == 8
    assert trial_ranks(100, 30, 1) == [1, 2, 3]
    assert trial_ranks(100, 30, 4) == []


def low_rank(**geometry):
    """A convolution whose kernel has one term."""
    layer = nn.Conv2d(8, 12, (3, 5), **geometry)
    with torch.no_grad():
        layer.weight.copy_(from_cp((random(12, 1), random(8, 1, seed=1), random(3, 1, seed=2), random(5, 1, seed=3))))
    return layer


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": (2, 1), "padding": (1, 2)},
        {"stride": 2, "padding": 2, "dilation": (1, 2), "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": (1, 2), "padding_mode": "reflect"},
        {"padding": (2, 3), "padding_mode": "circular", "stride": 3},
    ],
    ids=str,
)
def test_exact_factors_compute_what_the_convolution_computes(method, geometry):
    layer = low_rank(**geometry)
    image = random(2, 8, 14, 17).float()
    ranks = {"input": [1], "cp": [1], "separable": [8, 1], "group": [4, 1]}[method]
    found = CONVOLUTIONS[method].factors(layer, ranks)
    assert found.error < 1e-5
    torch.testing.assert_close(found.pieces(image), layer(image), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in found.pieces.parameters() if p.ndim > 1) < layer.weight.numel()


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize("multiple", [1, 4])
def test_candidates_tell_what_the_layers_keep_and_cost(method, multiple):
    layer = nn.Conv2d(8, 12, 3, padding=1)
    found = worthwhile(CONVOLUTIONS[method], layer, SQUARE, multiple)
    assert len(found)
    for entry in range(len(found)):
        ranks = found.ranks[entry].tolist()
        pieces = CONVOLUTIONS[method].split(layer, ranks)
        lost = relative(product_of(pieces), layer.weight.detach())
        assert 1 - lost**2 >= found.kept[entry] - 1e-9
        if method != "cp":
            assert 1 - lost**2 == pytest.approx(float(found.kept[entry]), abs=1e-9)
        assert sum(piece.weight.numel() for piece in pieces) == found.parameters[entry]
        assert found.macs[entry] == 64 * found.parameters[entry]
        assert prod(ranks) % multiple == 0 or prod(ranks) in {8, 8 * 9, 12 * ranks[0]}


@pytest.mark.parametrize("method", NEW)
def test_macs_are_those_that_torch_counts(method):
    layer = nn.Conv2d(8, 12, 3, stride=(2, 1), padding=1, bias=False)
    image = torch.zeros(1, 8, 16, 16)
    area = Area(inputs=256, outputs=128, between=128)
    found = worthwhile(CONVOLUTIONS[method], layer, area)
    pieces = CONVOLUTIONS[method].factors(layer, found.ranks[0].tolist()).pieces
    assert counts(pieces, ((image,), {})).macs == found.macs[0]


def smaller_by(method, run):
    """The convolutional network with its convolutions split, and what it gives for the example."""
    model = make("conv")
    found = apply_techniques(model, [Factorize(ratio=0.7, method=method, skip=("head",))], run)
    assert counts(found, run.example).parameters < 0.75 * counts(model, run.example).parameters
    assert counts(found, run.example).macs < counts(model, run.example).macs
    arguments, keywords = run.example
    with torch.no_grad():
        return found, found(*arguments, **keywords)


@pytest.mark.parametrize("method", NEW)
def test_a_network_gets_smaller_and_survives_the_artifact(method, tmp_path):
    run = make_run()
    found, expected = smaller_by(method, run)
    save(found, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    arguments, keywords = run.example
    with torch.no_grad():
        assert torch.equal(loaded(*arguments, **keywords), expected)


@pytest.mark.parametrize("method", ["cp", "group"])
def test_pieces_in_groups_export(method, tmp_path):
    run = make_run()
    found, expected = smaller_by(method, run)
    Onnx().export(found, tmp_path, run.example)
    arguments, keywords = run.example
    torch.testing.assert_close(Onnx().load(tmp_path, threads=1)(*arguments, **keywords), expected, rtol=1e-4, atol=1e-4)


CHECKS = [
    (method, check)
    for method in NEW
    for check in checks_for(Factorize(ratio=0.7, method=method), nets=["conv"], compose=False, export=False)
    if not str(check).startswith("repeats")
]


@pytest.mark.parametrize(("method", "check"), CHECKS, ids=str)
def test_every_method_keeps_the_promises_of_a_technique(method, check):
    check()
