"""Factorization: the least error that a rank allows, layers that compute the same, and what is left and why."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product
from math import log, sqrt

import pytest
import torch
from compress_factorize import Factorize
from compress_factorize.budget import Point, hull, least, spend
from compress_factorize.lowrank import (
    channel_factors,
    kept_by_rank,
    kept_by_ranks,
    matrix_factors,
    spatial_factors,
    spatial_matrix,
    tucker_factors,
)
from compress_factorize.methods import method_of
from compress_factorize.pieces import Area, worthwhile
from compress_factorize.recalibration import recalibrate
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from compress_core.masks import hold_zeros
from compress_core.measure import counts
from compress_core.parts import Change, TrainingTechnique
from tests.elsewhere import elsewhere
from tests.plugins.test_quantize import Masked
from tests.support import NETS, make, make_run

METHODS = ("spatial", "tucker", "channel")
SQUARE = Area(64, 64, 64)
SEEDS = st.integers(0, 10_000)


class Epochs(TrainingTechnique):
    """Trains, and nothing else."""

    name = "test-epochs"

    @property
    def changes(self) -> frozenset[Change]:
        return frozenset({Change.TRAINING})

    @property
    def brings_epochs(self) -> bool:
        return True

    def plan(self, plan, run):
        return replace(plan, epochs=5, optimizer=lambda groups: torch.optim.Adam(groups, lr=3e-3))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, wanted):
    return float(torch.linalg.vector_norm(found.double() - wanted.double()) / torch.linalg.vector_norm(wanted.double()))


def from_tucker(basis_in, core, basis_out):
    return torch.einsum("rshw,or,is->oihw", core, basis_out, basis_in)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), data=st.data(), seed=SEEDS)
def test_the_error_of_a_matrix_is_the_root_of_the_dropped_squares(rows, columns, data, seed):
    matrix = random(rows, columns, seed=seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    left, right = matrix_factors(matrix, rank)
    assert left.shape == (rows, rank) and right.shape == (rank, columns)
    values = torch.linalg.svdvals(matrix)
    error = torch.linalg.matrix_norm(matrix - left @ right)
    assert error == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-9)
    assert error**2 == pytest.approx(float((1 - kept_by_rank(values)[rank - 1]) * values.square().sum()), abs=1e-9)
    assert torch.allclose(left.norm(dim=0), right.norm(dim=1))  # the scale is shared evenly


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 5))
def test_no_other_matrix_of_that_rank_is_nearer(seed, rank):
    matrix = random(6, 7, seed=seed)
    left, right = matrix_factors(matrix, rank)
    best = torch.linalg.matrix_norm(matrix - left @ right)
    other, _ = torch.linalg.qr(random(6, rank, seed=seed + 1))
    assert best <= torch.linalg.matrix_norm(matrix - other @ other.T @ matrix) + 1e-12


def test_a_published_worked_example_of_the_decomposition():
    # Strang, Introduction to Linear Algebra, sec. 7.2: [[3, 0], [4, 5]] has the singular values sqrt(45), sqrt(5)
    matrix = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    assert kept_by_rank(torch.linalg.svdvals(matrix)).tolist() == pytest.approx([0.9, 1.0])
    left, right = matrix_factors(matrix, 1)
    assert (left @ right).flatten().tolist() == pytest.approx([1.5, 1.5, 4.5, 4.5])


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    data=st.data(),
    seed=SEEDS,
)
def test_a_kernel_of_two_pieces_has_the_error_of_its_matrix(shape, data, seed):
    weight = random(*shape, seed=seed)
    for matrix, factors, join in (
        (spatial_matrix(weight), spatial_factors, "riha,oraw->oihw"),
        (weight.flatten(1), channel_factors, "rihw,orab->oihw"),
    ):
        rank = data.draw(st.integers(1, min(matrix.shape)))
        first, second = factors(weight, rank)
        error = torch.linalg.vector_norm(weight - torch.einsum(join, first, second))
        assert error == pytest.approx(float(torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(2, 7), inputs=st.integers(2, 7), data=st.data(), seed=SEEDS)
def test_the_error_of_a_tucker_chain_is_within_its_bound(outputs, inputs, data, seed):
    weight = random(outputs, inputs, 3, 2, seed=seed)
    rank_out, rank_in = data.draw(st.integers(1, outputs)), data.draw(st.integers(1, inputs))
    total = weight.square().sum()
    modes = torch.linalg.svdvals(weight.flatten(1)), torch.linalg.svdvals(weight.transpose(0, 1).flatten(1))
    bound = sum(float(values[rank:].square().sum()) for values, rank in zip(modes, (rank_out, rank_in), strict=True))
    start, better = (
        float((weight - from_tucker(*tucker_factors(weight, rank_out, rank_in, iterations))).square().sum())
        for iterations in (0, 10)
    )
    least = max(float(values[rank:].square().sum()) for values, rank in zip(modes, (rank_out, rank_in), strict=True))
    assert least - 1e-9 <= better <= start + 1e-9 <= bound + 2e-9
    assert start == pytest.approx(float((1 - kept_by_ranks(weight)[rank_out - 1, rank_in - 1]) * total), abs=1e-9)


def test_orthogonal_iterations_find_a_kernel_that_has_these_ranks():
    exact = from_tucker(random(6, 2, seed=1), random(3, 2, 3, 3, seed=2), random(8, 3, seed=3))
    assert relative(from_tucker(*tucker_factors(exact, 3, 2)), exact) < 1e-10
    assert relative(from_tucker(*tucker_factors(exact, 2, 2)), exact) > 0.05


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_more_ranks_keep_more(seed):
    weight = random(5, 6, 3, 3, seed=seed)
    kept = kept_by_ranks(weight)
    assert (kept.diff(dim=0) >= 0).all() and (kept.diff(dim=1) >= 0).all()
    assert kept[-1, -1] == pytest.approx(1.0)
    single = kept_by_rank(torch.linalg.svdvals(weight.flatten(1)))
    assert (single.diff() >= 0).all() and single[-1] == pytest.approx(1.0)


def exact(layer, method):
    """The factors of a layer that keep everything."""
    found = worthwhile(method_of(layer, method), layer, SQUARE)
    entry = found.cheapest(1.0)
    assert entry is not None
    return method_of(layer, method).factors(layer, found.ranks[entry].tolist())


def truncated(layer, method, share):
    """The factors of a layer with at most a share of its parameters."""
    found = worthwhile(method_of(layer, method), layer, SQUARE)
    entry = int((found.parameters <= share * layer.weight.numel()).nonzero()[-1])
    return method_of(layer, method).factors(layer, found.ranks[entry].tolist())


def low_rank_convolution(seed=0, **geometry):
    """A convolution whose kernel each method can represent exactly with two channels between the pieces."""
    layer = nn.Conv2d(8, 12, (3, 5), **geometry)
    with torch.no_grad():
        parts = (
            random(12, 2, seed=seed),
            random(8, 2, seed=seed + 1),
            random(3, seed=seed + 2),
            random(5, seed=seed + 3),
        )
        layer.weight.copy_(torch.einsum("or,ir,h,w->oihw", *parts))
    return layer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": (2, 1), "padding": (1, 2)},
        {"stride": 2, "padding": 2, "dilation": (1, 2), "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": (1, 2), "padding_mode": "reflect"},
        {"padding": (2, 3), "padding_mode": "circular", "stride": 3},
        {"padding": 1, "padding_mode": "replicate"},
    ],
    ids=str,
)
def test_exact_factors_compute_what_the_convolution_computes(method, geometry):
    layer = low_rank_convolution(**geometry)
    image = random(2, 8, 14, 17).float()
    found = exact(layer, method)
    assert set(found.ranks) == {2}
    assert found.error < 1e-5
    assert len(found.pieces) == (3 if method == "tucker" else 2)
    torch.testing.assert_close(found.pieces(image), layer(image), rtol=1e-4, atol=1e-4)
    assert [piece.bias is not None for piece in found.pieces][-1] is (layer.bias is not None)


@pytest.mark.parametrize("method", METHODS)
def test_the_told_error_is_that_of_the_kernel_which_the_pieces_apply(method):
    layer = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    found = truncated(layer, method, 0.5)
    impulses = torch.zeros(8, 8, 5, 5)
    impulses[range(8), range(8), 2, 2] = 1.0
    with torch.no_grad():
        assert relative(found.pieces(impulses), layer(impulses)) == pytest.approx(found.error, rel=1e-4)
    assert 0.1 < found.error < 1


def test_a_linear_layer_of_low_rank_is_found_and_kept_exact():
    layer = nn.Linear(20, 30)
    with torch.no_grad():
        layer.weight.copy_(random(30, 4) @ random(4, 20, seed=1))
    found = exact(layer, "spatial")
    assert found.ranks == (4,)
    x = random(3, 7, 20, seed=2).float()
    torch.testing.assert_close(found.pieces(x), layer(x), rtol=1e-4, atol=1e-4)
    assert sum(parameter.numel() for parameter in found.pieces.parameters()) == 4 * 50 + 30


def test_a_tucker_chain_leaves_out_a_piece_that_would_keep_every_channel():
    layer = nn.Conv2d(8, 12, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("or,rihw->oihw", random(12, 3), random(3, 8, 3, 3, seed=1)))
    found = exact(layer, "tucker")
    assert found.ranks == (3, 8)
    assert [tuple(piece.weight.shape) for piece in found.pieces] == [(3, 8, 3, 3), (12, 3, 1, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_only_candidates_that_save_and_are_bettered_by_no_other_are_worthwhile(method):
    layer = nn.Conv2d(8, 12, 3)
    every, found = (
        method_of(layer, method).candidates(layer, SQUARE),
        worthwhile(method_of(layer, method), layer, SQUARE),
    )
    saving = (every.parameters < 864) & (every.macs < 864 * 64)
    assert len(found) > 3
    assert (found.kept.diff() > 0).all() and (found.parameters.diff() > 0).all()
    for kept, parameters in zip(found.kept, found.parameters, strict=True):
        assert every.parameters[saving & (every.kept >= kept)].min() == parameters
        assert every.kept[saving & (every.parameters <= parameters)].max() == kept


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("energy", [0.3, 0.6, 0.75])
def test_energy_takes_the_cheapest_that_keeps_enough(method, energy):
    layer = nn.Conv2d(16, 24, 3)
    every, found = (
        method_of(layer, method).candidates(layer, SQUARE),
        worthwhile(method_of(layer, method), layer, SQUARE),
    )
    entry = found.cheapest(energy)
    assert entry is not None
    assert found.parameters[entry] == every.parameters[every.kept >= energy].min()
    built = method_of(layer, method).factors(layer, found.ranks[entry].tolist())
    assert built.error <= sqrt(1 - energy) + 1e-9
    assert sum(piece.weight.numel() for piece in built.pieces) == found.parameters[entry]


def test_energy_that_would_need_more_parameters_leaves_the_layer():
    assert worthwhile(method_of(nn.Conv2d(16, 24, 3), "spatial"), nn.Conv2d(16, 24, 3), SQUARE).cheapest(0.99) is None


def test_ranks_can_be_multiples():
    layer = nn.Conv2d(40, 48, 3)
    for method in METHODS:
        ranks = worthwhile(method_of(layer, method), layer, SQUARE, multiple=16).ranks
        assert len(ranks) and all(rank % 16 == 0 or rank in {40, 48} for rank in ranks.flatten().tolist())


def test_multiples_leave_a_layer_that_is_narrower_than_one():
    said: list[str] = []
    found = apply_techniques(make("conv"), [Factorize(ratio=0.7, multiple=16)], make_run(teller=said.append))
    assert isinstance(found.stem, nn.Conv2d) and isinstance(found.blocks[1].conv2, nn.Sequential)
    assert "would save nothing: stem" in said[0]


def test_a_chain_that_saves_parameters_but_no_multiplications_is_not_worthwhile():
    layer = nn.Conv2d(8, 12, 3, stride=3)
    strided, flat = Area(inputs=81, outputs=9, between=27), Area(9, 9, 9)
    before = {tuple(ranks) for ranks in worthwhile(method_of(layer, "tucker"), layer, flat).ranks.tolist()}
    after = worthwhile(method_of(layer, "tucker"), layer, strided)
    assert any(ranks[1] < 8 for ranks in before)
    assert (after.macs < 864 * 9).all()
    assert max(after.ranks[after.ranks[:, 1] < 8][:, 1].tolist(), default=0) < max(r[1] for r in before if r[1] < 8)


def choices(full, *pairs):
    """The points of a layer from pairs of a cost and a kept share, by falling cost."""
    return [Point(full, 0.0, None), *(Point(cost, -log(kept), entry) for entry, (cost, kept) in enumerate(pairs))]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.integers(1, 3), share=st.floats(0.05, 1.0))
def test_the_budget_is_spent_nearly_as_well_as_by_trying_everything(data, count, share):
    layers = {}
    for index in range(count):
        sizes = sorted(data.draw(st.sets(st.integers(1, 60), min_size=1, max_size=5)), reverse=True)
        kept = sorted(data.draw(st.sets(st.integers(1, 99), min_size=len(sizes), max_size=len(sizes))), reverse=True)
        layers[str(index)] = choices(61, *zip(sizes, [value / 100 for value in kept], strict=True))
    budget = share * 61 * count
    fitting = [every for every in product(*layers.values()) if sum(point.cost for point in every) <= budget]
    chosen = spend(budget, layers)
    if not fitting:
        assert chosen is None
        return
    assert chosen is not None
    loss, best = (sum(point.loss for point in every) for every in (chosen.values(), min(fitting, key=_loss)))
    assert sum(point.cost for point in chosen.values()) <= budget
    assert loss >= best - 1e-9
    if count == 1:
        assert loss == pytest.approx(best)
    left = budget - sum(point.cost for point in chosen.values())
    for path, points in layers.items():
        better = [point for point in points if point.loss < chosen[path].loss]
        assert all(point.cost - chosen[path].cost > left for point in better)


def _loss(points):
    return sum(point.loss for point in points)


def entries(chosen):
    return {path: point.entry for path, point in chosen.items() if point.entry is not None}


def test_the_budget_cuts_where_a_unit_keeps_the_least():
    layers = {"flat": choices(100, (50, 0.6), (10, 0.5)), "steep": choices(100, (50, 0.99), (10, 0.95))}
    assert entries(spend(200, layers)) == {}
    assert entries(spend(150, layers)) == {"steep": 0}
    assert entries(spend(120, layers)) == {"steep": 1}
    assert entries(spend(20, layers)) == {"flat": 1, "steep": 1}
    assert spend(19, layers) is None
    assert least(layers) == 20


def test_no_layer_is_cut_to_nothing_because_the_next_step_of_another_comes_first():
    alike = choices(100, (60, 0.98), (40, 0.9), (2, 0.01))
    chosen = spend(250, {name: alike for name in "abc"})
    assert chosen is not None
    assert sum(point.cost for point in chosen.values()) <= 250
    assert 2 not in entries(chosen).values()


def test_the_hull_leaves_out_what_two_others_better():
    points = [Point(100, 0.0, None), Point(90, 0.9, 2), Point(50, 1.0, 1), Point(10, 3.0, 0)]
    assert [point.cost for point in hull(points)] == [100, 50, 10]


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_ratio_is_the_share_of_all_these_layers(ratio):
    model = make("conv")
    found = apply_techniques(model, [Factorize(ratio=ratio)], make_run())
    before, after = (sum(p.numel() for p in net.parameters() if p.ndim > 1) for net in (model, found))
    assert 0.97 * ratio * before < after <= ratio * before


def test_a_ratio_out_of_reach_says_what_could_be_reached():
    with pytest.raises(ModelError, match=r"the least is 0\.0\d+"):
        Factorize(ratio=0.001).apply(make("mlp"), make_run())


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "spatial") for name in NETS), ("conv", "tucker"), ("conv", "channel")]
)
def test_every_kind_of_network_gets_smaller_runs_and_survives_the_artifact(name, method, tmp_path):
    said: list[str] = []
    run, model = make_run(teller=said.append), make(name)
    smaller = apply_techniques(model, [Factorize(ratio=0.6, method=method)], run)
    before, after = counts(model, run.example), counts(smaller, run.example)
    assert after.parameters < before.parameters
    assert f"{before.parameters:,} to {after.parameters:,} parameters" in said[0]
    save(smaller, tmp_path / "model", factory=f"tests.support:{type(model).__name__}")
    loaded = load(tmp_path / "model", factory=f"tests.support:{type(model).__name__}")
    arguments, keywords = run.example
    with torch.no_grad():
        assert torch.equal(loaded(*arguments, **keywords), smaller(*arguments, **keywords))


def test_the_pieces_of_a_transformer_are_called_in_eval_mode_too():
    model = make("transformer")
    found = apply_techniques(model, [Factorize(ratio=0.5, skip=("embed", "head"))], make_run())
    layer = found.encoder.layers[0]
    assert isinstance(layer.linear1, nn.Sequential)
    (image,), _ = make_run().example
    with torch.no_grad():
        fused = found(image)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            torch.testing.assert_close(found(image), fused)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("method", ["spatial", "tucker", "channel"])
@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1), nn.Linear(6, 4)], ids=str)
def test_ranks_and_factors_are_computed_on_the_processor_wherever_the_layer_is(layer, method):
    layer = deepcopy(layer)
    with elsewhere(layer):
        found = method_of(layer, method).candidates(layer, Area(2, 2, 2))
        pieces = method_of(layer, method).split(layer, [2, 2])
    for tensor in (found.ranks, found.kept, found.parameters, found.macs, *(piece.weight for piece in pieces)):
        assert tensor.device.type == "cpu"
    assert {tensor.dtype for tensor in (found.kept, *(piece.weight for piece in pieces))} == {torch.float64}
    assert layer.weight.device.type == "cuda"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_pieces_of_an_encoder_with_a_padding_mask_are_called():
    run = make_run()
    found = apply_techniques(Masked(), [Factorize(ratio=0.5, skip=("embed", "head"))], run)
    assert isinstance(found.encoder.layers[0].linear1, nn.Sequential)
    with torch.no_grad():
        evaluated, trained = (found.train(mode)(run.example[0][0]) for mode in (False, True))
    torch.testing.assert_close(evaluated, trained)


def test_factors_learn_what_the_truncation_lost():
    run = make_run()
    trained = apply_techniques(make("conv"), [Epochs()], run)
    cut = apply_techniques(trained, [Factorize(ratio=0.25, recalibrate=False)], run)
    again = apply_techniques(cut, [Epochs()], run)
    dense, lost, regained = (run.evaluate(model).value for model in (trained, cut, again))
    assert dense > 0.9
    assert lost < dense - 0.1
    assert regained > dense - 0.05
    assert counts(again, run.example).parameters < 0.3 * counts(trained, run.example).parameters


def test_what_is_left_is_named_with_its_reason():
    model = nn.Sequential()
    model.image = nn.Unflatten(1, (4, 16))
    for name, layer in {
        "grouped": nn.Conv1d(4, 4, 1),
        "flat": nn.Flatten(),
        "masked": nn.Linear(64, 64),
        "first": nn.Linear(64, 64),
        "second": nn.Linear(64, 64),
        "zeros": nn.Linear(64, 64),
        "own": type("Own", (nn.Linear,), {})(64, 64),
        "hooked": nn.Linear(64, 64),
        "chosen": nn.Linear(64, 64),
        "skipped": nn.Linear(64, 10),
    }.items():
        model.add_module(name, layer)
    model.image = nn.Flatten()
    model.grouped = nn.Sequential(nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 4, 1, groups=2))
    model.second.weight = model.first.weight
    nn.init.zeros_(model.zeros.weight)
    hold_zeros(model.masked, "weight")
    model.hooked.register_forward_hook(lambda module, inputs, output: None)
    said: list[str] = []
    found = Factorize(ratio=0.5, skip=("skipped",)).apply(model, make_run(teller=said.append))
    assert "1 layer replaced" in said[0] and "chosen (rank 16, error" in said[0]
    for reason in (
        "has groups: grouped.1",
        "has removed weights: masked",
        "shares its weight: first, second",
        "is all zeros: zeros",
        "Own is not factorized: own",
        "has hooks: hooked",
    ):
        assert reason in said[0]
    assert "skipped" not in said[0]
    assert isinstance(found.chosen, nn.Sequential) and isinstance(found.skipped, nn.Linear)


def test_recurrent_layers_stay_and_are_named():
    said: list[str] = []
    apply_techniques(make("lstm"), [Factorize(ratio=0.6)], make_run(teller=said.append))
    assert "LSTM is not factorized: lstm" in said[0]


def test_it_says_that_nothing_changed():
    said: list[str] = []
    model = make("mlp")
    found = apply_techniques(model, [Factorize(energy=0.999)], make_run(teller=said.append))
    assert said == ["factorize: nothing changed (would save nothing: layers.1, layers.3, layers.5)"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_a_network_that_is_one_layer_is_replaced_whole():
    layer = nn.Linear(8, 8)
    found = Factorize(ratio=0.5).apply(layer, make_run())
    image = make_run().example[0][0]
    assert isinstance(found, nn.Sequential) and found(image).shape == (2, 1, 8, 8)


def test_recalibration_measures_what_reaches_each_norm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.frozen = nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False)

        def forward(self, image):
            return self.frozen(self.norm(image))

    run, model = make_run(), Net().eval()
    assert recalibrate(model, run) == 1
    batches = [batch["image"] for batch in run.calibration()]
    assert model.norm.running_mean.item() == pytest.approx(
        float(sum(b.mean() for b in batches) / len(batches)), rel=1e-5
    )
    assert model.norm.running_var.item() == pytest.approx(float(sum(b.var() for b in batches) / len(batches)), rel=1e-5)
    assert model.norm.momentum == 0.1 and not model.norm.training
    assert recalibrate(make("mlp"), run) == 0


def test_a_norm_that_no_batch_reaches_keeps_its_statistics():
    model = make("conv")
    model.aside = nn.BatchNorm1d(3)
    model.aside.running_mean.fill_(5.0)
    model.aside.num_batches_tracked.fill_(7)
    assert recalibrate(model, make_run()) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model.aside.running_mean.tolist() == [5.0] * 3 and int(model.aside.num_batches_tracked) == 7
    assert model.aside.momentum == 0.1


def test_recalibration_regains_quality_without_training():
    run = make_run()
    trained = apply_techniques(make("conv"), [Epochs()], run)
    with_it, without = (
        run.evaluate(apply_techniques(trained, [Factorize(ratio=0.3, recalibrate=flag)], run)).value
        for flag in (True, False)
    )
    assert with_it > without + 0.05


def test_frozen_weights_stay_frozen_and_modes_stay():
    model = make("conv").train()
    model.blocks[1].conv2.weight.requires_grad_(False)
    model.blocks[1].eval()
    found = Factorize(ratio=0.5, skip=("blocks.0", "head")).apply(model, make_run())
    assert not any(parameter.requires_grad for parameter in found.blocks[1].conv2.parameters())
    assert all(parameter.requires_grad for parameter in found.blocks[1].conv1.parameters())
    assert found.training and not any(module.training for module in found.blocks[1].conv2.modules())


def test_the_same_network_gives_the_same_factors():
    one, other = (apply_techniques(make("conv"), [Factorize(ratio=0.5)], make_run()) for _ in range(2))
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_a_weight_that_is_no_number_is_named():
    model = make("mlp")
    with torch.no_grad():
        model.layers[3].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.3.*not finite"):
        Factorize(ratio=0.5).apply(model, make_run())


@pytest.mark.parametrize(
    "fields",
    [{}, {"energy": 0.9, "ratio": 0.5}, {"energy": 0}, {"energy": 1.1}, {"ratio": 1.0}, {"ratio": 0.5, "method": "qr"}],
)
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        Factorize(**fields)
