"""Ranks: out of the noise, as given, within multiplications, within a measured time."""

from __future__ import annotations

from copy import deepcopy
from math import log, sqrt

import pytest
import torch
from compress_factorize import Factorize
from compress_factorize.evbmf import evbmf_rank, noise_variance, objective, threshold
from compress_factorize.latency import MEASUREMENTS, by_latency
from compress_factorize.layers import find_layers
from compress_factorize.ranks import Budget, by_energy, options
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.errors import ModelError
from compress_core.measure import counts
from tests.support import NETS, make, make_run


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(rows, columns, rank, deviation, seed):
    """A matrix of a rank whose components are far above the noise, and noise."""
    left, right = (torch.linalg.qr(random(size, rank, seed=seed + size))[0] for size in (rows, columns))
    strengths = (4 + random(rank, seed=seed).abs()) * (sqrt(rows) + sqrt(columns)) * max(deviation, 0.01)
    return (left * strengths) @ right.T + deviation * random(rows, columns, seed=seed + 2)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(20, 60),
    columns=st.integers(20, 120),
    rank=st.integers(0, 6),
    deviation=st.sampled_from([0.01, 0.3, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_evbmf_finds_the_rank_that_lies_under_noise(rows, columns, rank, deviation, seed):
    assert evbmf_rank(noisy(rows, columns, rank, deviation, seed)) == rank


def test_evbmf_does_not_depend_on_scale_or_on_which_side_is_longer():
    matrix = noisy(30, 80, 4, 0.5, 0)
    assert evbmf_rank(matrix) == evbmf_rank(matrix.T) == evbmf_rank(1e-6 * matrix) == 4


def test_evbmf_takes_noise_that_is_known():
    matrix = noisy(40, 60, 3, 0.2, 5)
    assert evbmf_rank(matrix, 0.04) == 3
    assert evbmf_rank(matrix, 1e4) == 0


@pytest.mark.parametrize("matrix", [torch.zeros(4, 6), torch.ones(1, 1), torch.ones(1, 5)], ids=["zeros", "one", "row"])
def test_a_matrix_without_anything_to_compare_has_no_rank(matrix):
    assert evbmf_rank(matrix) == 0


def test_the_threshold_is_the_published_constant_for_a_square_matrix():
    # Nakajima et al. 2013: tau_ is about 2.5129 sqrt(alpha), exactly 2.5129 for alpha = 1
    assert threshold(1.0) == pytest.approx((1 + 2.5129) * (1 + 1 / 2.5129), rel=1e-4)
    for ratio in (0.05, 0.3, 0.7):
        near = 2.5129 * sqrt(ratio)
        assert threshold(ratio) == pytest.approx((1 + near) * (1 + ratio / near), rel=0.02)


def test_the_noise_is_estimated_and_its_free_energy_is_no_larger_than_that_of_others():
    matrix = noisy(50, 90, 5, 0.7, 3)
    squares, ratio = torch.linalg.svdvals(matrix).square() / 90, 50 / 90
    found = noise_variance(squares, ratio, threshold(ratio))
    assert found == pytest.approx(0.49, rel=0.1)
    others = torch.logspace(log(0.02), log(5), 300, base=torch.e, dtype=torch.float64)
    least = objective(squares, torch.tensor([found], dtype=torch.float64), ratio, threshold(ratio))
    assert float(least) <= float(objective(squares, others, ratio, threshold(ratio)).min()) + 1e-6


def layer_of_rank(rank, deviation=0.02, rows=48, columns=64):
    layer = nn.Linear(columns, rows)
    with torch.no_grad():
        layer.weight.copy_(noisy(rows, columns, rank, deviation, 1))
    return layer


def test_evbmf_is_used_for_every_layer_and_noise_is_left_alone():
    model = nn.Sequential(nn.Flatten(), layer_of_rank(3, rows=64), layer_of_rank(0, rows=64), layer_of_rank(5))
    said: list[str] = []
    found = Factorize(rank="evbmf").apply(model, make_run(teller=said.append))
    assert [found[1][0].out_features, found[3][0].out_features] == [3, 5]
    assert isinstance(found[2], nn.Linear)
    assert "has no rank that stands out of its noise: 2" in said[0]


def test_evbmf_ranks_are_rounded_up_to_multiples():
    model = nn.Sequential(nn.Flatten(), layer_of_rank(3, rows=64), layer_of_rank(9))
    found = Factorize(rank="evbmf", multiple=8).apply(model, make_run())
    assert [found[1][0].out_features, found[2][0].out_features] == [8, 16]


def test_evbmf_gives_a_tucker_chain_the_rank_of_each_unfolding():
    layer = nn.Conv2d(24, 32, 3, padding=1)
    core, outs, ins = random(4, 3, 3, 3, seed=1), random(32, 4, seed=2), random(24, 3, seed=3)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("rshw,or,is->oihw", core, outs, ins) + 0.05 * random(32, 24, 3, 3, seed=4))
    model = nn.Sequential(nn.Conv2d(1, 24, 1), layer)
    found = Factorize(rank="evbmf", method="tucker").apply(model, make_run())
    assert [tuple(piece.weight.shape[:2]) for piece in found[1]] == [(3, 24), (4, 3), (32, 4)]


def test_a_given_rank_is_the_rank_of_every_layer_that_it_makes_cheaper():
    said: list[str] = []
    found = apply_techniques(make("conv"), [Factorize(rank=9, skip=("stem",))], make_run(teller=said.append))
    for path, module in found.named_modules():
        if isinstance(module, nn.Sequential) and path and len(module) == 2 and hasattr(module[0], "weight"):
            assert module[0].weight.shape[0] == 9
    assert "rank 9, error" in said[0] and "left: would save nothing: head" in said[0]


@pytest.mark.parametrize(("method", "full"), [("spatial", 3), ("tucker", 1), ("channel", 9)])
def test_a_rank_above_the_full_rank_names_the_layer_and_its_full_rank(method, full):
    with pytest.raises(ModelError, match=rf"stem: rank 10 is above its full rank, {full}") as caught:
        apply_techniques(make("conv"), [Factorize(rank=10, method=method)], make_run())
    assert f"at most {full}" in caught.value.mend
    found = apply_techniques(make("conv"), [Factorize(rank=10, method=method, skip=("stem",))], make_run())
    assert isinstance(found.blocks[1].conv2, nn.Sequential)


@pytest.mark.parametrize("method", ["spatial", "tucker", "channel"])
@pytest.mark.parametrize("ratio", [0.4, 0.7])
def test_a_share_of_the_multiplications_is_met_and_used(method, ratio):
    model, run = make("conv"), make_run()
    found = apply_techniques(model, [Factorize(ratio=ratio, of="macs", method=method)], run)
    before, after = counts(model, run.example).macs, counts(found, run.example).macs
    assert 0.95 * ratio * before < after <= ratio * before


def test_multiplications_and_parameters_are_cut_in_different_layers():
    model, run = make("conv"), make_run()
    parameters, macs = (
        counts(apply_techniques(model, [Factorize(ratio=0.5, of=of)], run), run.example)
        for of in ("parameters", "macs")
    )
    before = counts(model, run.example)
    assert parameters.parameters < 0.52 * before.parameters and parameters.macs > 0.55 * before.macs
    assert macs.macs <= 0.5 * before.macs


def test_a_share_of_the_multiplications_out_of_reach_says_what_is_in_reach():
    with pytest.raises(ModelError, match=r"0\.001 of their multiplications; the least is 0\.\d+"):
        Factorize(ratio=0.001, of="macs").apply(make("conv"), make_run())


def surveyed(name="conv", **how):
    model, run = make(name), make_run()
    return model, options(model, run, find_layers(model, run, {}), "spatial", from_data=False), run


@pytest.mark.parametrize("name", NETS)
def test_the_smallest_share_that_is_told_can_be_had(name):
    _, layers, _ = surveyed(name)
    for of in ("parameters", "macs"):
        budget = Budget(layers, 1, of)
        assert budget.ranks(budget.smallest)
        with pytest.raises(ModelError, match="the least is"):
            budget.ranks(budget.smallest * 0.99)


def test_the_smallest_share_can_be_had_though_it_is_rounded_and_so_can_the_one_that_is_told():
    run, model = make_run(), nn.Sequential(nn.Flatten(), nn.Linear(64, 25), nn.ReLU(), nn.Linear(25, 10))
    budget = Budget(options(model, run, find_layers(model, run, {}), "spatial", from_data=False), 1, "macs")
    assert budget.smallest * budget.full < 2 * (64 + 25 + 25 + 10)  # rounding has taken something
    assert all(len(ranks) == 1 for ranks in budget.ranks(budget.smallest).values())
    with pytest.raises(ModelError) as failure:
        budget.ranks(0.01)
    assert budget.ranks(float(str(failure.value).partition("the least is ")[2].split()[0]))


def test_energy_counts_what_is_asked_for():
    _, layers, _ = surveyed()
    macs, parameters = (by_energy(layers, 0.5, 1, of) for of in ("macs", "parameters"))
    assert macs.keys() and parameters.keys()


def macs_share(dense, run):
    """A clock that takes a network's multiplications for its time."""
    full = counts(dense, run.example).macs
    asked: list[float] = []

    def timed(model):
        asked.append(counts(model, run.example).macs / full)
        return asked[-1]

    return timed, asked


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_target_time_is_met_from_below_and_nearly_used(share):
    model, layers, run = surveyed()
    timed, asked = macs_share(model, run)
    before = deepcopy(model.state_dict())
    ranks, taken = by_latency(model, layers, Budget(layers, 1, "macs"), share, timed)
    assert ranks
    assert share - 0.03 < taken <= share
    assert len(asked) <= MEASUREMENTS and taken in asked
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_target_time_out_of_reach_gives_the_time_of_the_smallest_network():
    model, layers, run = surveyed()
    timed, asked = macs_share(model, run)
    ranks, taken = by_latency(model, layers, Budget(layers, 1, "macs"), 0.01, timed)
    assert ranks is None and asked == [taken] and taken > 0.01


def test_a_target_time_is_told_and_recorded_with_the_ranks(monkeypatch):
    said, kept = [], {}
    run = make_run(teller=said.append, recorder=kept.__setitem__)
    model = make("conv")
    timed, _ = macs_share(model, run)
    monkeypatch.setattr("compress_core.stopwatch.Stopwatch.__call__", lambda self, network: timed(network))
    found = apply_techniques(model, [Factorize(ratio=0.5, of="latency")], run)
    assert counts(found, run.example).macs <= 0.5 * counts(model, run.example).macs
    assert "of the dense network's time in torch with" in said[0]
    ranks = {path: tuple(entry) for path, entry in kept["factorize"]["ranks"].items()}
    assert ranks and all(found.get_submodule(path)[0].weight.shape[0] == rank for path, (rank,) in ranks.items())


def test_the_network_that_is_timed_is_the_one_that_comes_out(monkeypatch):
    kinds = []

    def noted(self, network):
        kinds.append([type(module).__name__ for module in network.modules()])
        return 0.4

    monkeypatch.setattr("compress_core.stopwatch.Stopwatch.__call__", noted)
    technique = Factorize(ratio=0.9, of="latency", skip=("*.self_attn",))
    found = apply_techniques(make("transformer"), [technique], make_run())
    assert kinds[-1] == [type(module).__name__ for module in found.modules()]
    assert kinds[-1].count("MultiheadAttention") == 2


def test_a_target_time_out_of_reach_says_what_the_smallest_network_takes(monkeypatch):
    monkeypatch.setattr("compress_core.stopwatch.Stopwatch.__call__", lambda self, network: 0.9)
    with pytest.raises(
        ModelError, match=r"cannot take 0\.5 of its time in torch: with the smallest ranks it takes 0\.9"
    ):
        Factorize(ratio=0.5, of="latency").apply(make("conv"), make_run())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": 4, "ratio": 0.5}, "one of the three"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"rank": "all"}, "evbmf"),
        ({"rank": 4, "multiple": 16}, "no multiple of 16"),
        ({"rank": 4, "method": "cp"}, "method: cp"),
        ({"rank": "evbmf", "method": "group"}, "method: group"),
        ({"rank": 4, "of": "macs"}, "leave `of` out"),
        ({"ratio": 0.5, "refine_steps": 30}, "`refine: steps`"),
        ({"ratio": 0.5, "refine": "least-squares", "refine_steps": 30}, "`refine: steps`"),
        ({"energy": 0.9, "of": "latency"}, "give `ratio`"),
        ({"ratio": 0.5, "runtime": "onnx"}, "add `of: latency`"),
        ({"ratio": 0.5, "of": "latency", "runtime": "onyx"}, "torch, "),
        ({"ratio": 0.5, "fit": "labels"}, "data"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        Factorize(**fields)
