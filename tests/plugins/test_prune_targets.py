"""How many channels go for a share of the parameters, the MACs or the time."""

from __future__ import annotations

import re

import pytest
import torch
from compress_prune import Prune
from compress_prune.latency import WithoutChannels
from compress_prune.targets import CannotReach, Formula, cost_of, solved, solved_by_measuring, without
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.channels.coupling import coupled_groups
from compress_core.channels.proof import proven
from compress_core.errors import ModelError
from compress_core.measure import counts
from compress_core.testing import Epochs
from tests.support import make, make_run


class Mixed(nn.Module):
    """A concatenation, a depthwise, a grouped and a transposed convolution, a bare parameter, a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(1, 6, 3, 2, 1, bias=False)
        self.norm, self.depth = nn.BatchNorm2d(14), nn.Conv2d(14, 14, 3, 1, 1, groups=14)
        self.three, self.four = nn.Conv2d(14, 12, 1), nn.Conv2d(12, 8, 3, 1, 1, groups=4)
        self.gamma = nn.Parameter(torch.full((1, 8, 1, 1), 0.5))
        self.wide, self.act = nn.ConvTranspose2d(8, 6, 2, 2), nn.PReLU(6)
        self.hidden, self.head = nn.Linear(6 * 64, 20), nn.Linear(20, 10)

    def forward(self, image):
        x = torch.cat([self.one(image), self.two(image)], 1)
        x = self.three(F.relu(self.depth(F.relu(self.norm(x)))))
        x = self.act(self.wide(self.four(F.relu(x)) * self.gamma))
        return self.head(F.relu(self.hidden(x.flatten(1))))


class Gram(nn.Module):
    """Multiplies the rows of a weight with each other: MACs that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 16, 3, 1, 1), nn.Linear(16, 10)

    def forward(self, image):
        rows = self.conv.weight.flatten(1)
        return self.head(F.relu(self.conv(image)).mean((2, 3))) * (rows @ rows.T).sum()


def groups_of(model, run):
    return proven(model, coupled_groups(model, run)[0], run)[0]


def real(model, groups, gone, of, run):
    return getattr(counts(without(model, groups, gone), run.example), of)


@pytest.mark.parametrize("of", ["parameters", "macs"])
@pytest.mark.parametrize("name", ["mlp", "conv", "mixed"])
def test_the_formula_counts_what_a_cut_network_has(name, of):
    run = make_run()
    model = Mixed() if name == "mixed" else make(name)
    groups = groups_of(model, run)
    cost = cost_of(model, groups, of, run)
    assert isinstance(cost, Formula)
    generator = torch.Generator().manual_seed(0)
    for share in (0.1, 0.4, 0.7):
        gone = []
        for group in groups:
            mask = torch.rand(group.blocks, group.size // group.blocks, generator=generator).argsort(1)
            gone.append((mask < int(share * mask.shape[1])).reshape(-1))
        assert cost(gone) == pytest.approx(real(model, groups, gone, of, run), abs=0.5)


def test_macs_that_belong_to_no_layer_are_counted_on_a_network_that_is_cut():
    run, model = make_run(), Gram()
    groups = groups_of(model, run)
    cost = cost_of(model, groups, "macs", run)
    assert not isinstance(cost, Formula)
    gone = [torch.arange(16) < 12]
    assert cost(gone) == real(model, groups, gone, "macs", run) == 4 * 64 * 9 + 4 * 4 * 9 // 2 + 4 * 10
    assert isinstance(cost_of(model, groups, "parameters", run), Formula)


def test_counting_leaves_the_network_as_it_is():
    run, model = make_run(), make("conv").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for of in ("parameters", "macs"):
        cost_of(model, groups_of(model, run), of, run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


networks = st.lists(st.tuples(st.integers(2, 40), st.integers(1, 100)), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(layers=networks, amount=st.floats(0.05, 0.95), step=st.sampled_from([1, 2, 4]))
def test_the_target_is_met_within_one_step_of_one_group(layers, amount, step):
    sizes = [size * step for size, _ in layers]

    def plan(level):
        return [torch.arange(size) < min(size - step, round(level * size / step) * step) for size in sizes]

    def cost(gone):
        return 50 + sum(each * int((~mask).sum()) for (_, each), mask in zip(layers, gone, strict=True))

    full, smallest = cost(plan(0.0)), cost(plan(1.0))
    try:
        found = solved(plan, cost, amount, full)
    except CannotReach as error:
        assert error.most == pytest.approx(1 - smallest / full)
        assert error.most < amount
        return
    missed = (1 - amount) * full - cost(found)
    assert missed >= -1e-6
    assert missed < max(step * each for _, each in layers)


def test_a_time_is_met_with_few_measurements_and_none_twice():
    asked = []

    def ratio(gone):
        asked.append(int(gone[0].sum()))
        return 1 - 0.9 * asked[-1] / 256

    found, measured = solved_by_measuring(lambda level: [torch.arange(256) < round(level * 255)], ratio, 0.5)
    assert measured == ratio(found) <= 0.5
    assert measured == pytest.approx(0.5, abs=0.02)
    assert len(set(asked)) == len(asked) - 1 <= 8


def test_groups_get_back_what_another_groups_step_has_saved_beyond_the_target():
    def plan(level):
        return [torch.arange(64) < round(64 * level) // 2, torch.arange(16) < 8 * int(level >= 0.5)]

    def cost(gone):
        return int((~gone[0]).sum()) + 10 * int((~gone[1]).sum())

    narrow, wide = solved(plan, cost, 0.4, 224)  # 134.4 may stay: without the step of 80 it would be 160 at most
    assert int(wide.sum()) == 8
    assert int(narrow.sum()) <= 12
    assert 134.4 - 6 < cost([narrow, wide]) <= 134.4


def test_where_all_groups_jump_at_one_level_the_time_decides_how_many_of_them():
    def plan(level):
        return [torch.tensor([level >= 0.5, False])] * 8

    found, measured = solved_by_measuring(plan, lambda gone: 1 - 0.1 * sum(int(mask.sum()) for mask in gone), 0.35)
    assert measured == pytest.approx(0.6)
    assert [int(mask.sum()) for mask in found] == [1] * 4 + [0] * 4


def test_a_time_that_even_the_smallest_network_needs_is_refused_with_what_can_be_reached():
    with pytest.raises(CannotReach) as caught:
        solved_by_measuring(
            lambda level: [torch.arange(16) < round(level * 15)], lambda gone: 1 - 0.02 * int(gone[0].sum()), 0.5
        )
    assert caught.value.most == pytest.approx(0.3)


@pytest.mark.parametrize("of", ["parameters", "macs"])
@pytest.mark.parametrize(
    "fields", [{}, {"allocation": "global"}, {"allocation": "sensitivity"}, {"multiple": 4}], ids=str
)
def test_a_share_of_the_network_goes_and_hardly_more(of, fields):
    run, model = make_run(), make("conv")
    cut = apply_techniques(model, [Prune(amount=0.4, granularity="channel", of=of, **fields)], run)
    dense, left = (getattr(counts(network, run.example), of) for network in (model, cut))
    assert left <= 0.6 * dense
    layers = [module for module in cut.modules() if isinstance(module, nn.Conv2d)]
    if "multiple" in fields:
        assert all(layer.out_channels % 4 == 0 for layer in layers)
    assert left >= (0.6 - 0.04 * fields.get("multiple", 1)) * dense


def test_a_share_of_the_macs_goes_while_the_network_trains():
    run, model = make_run(), make("conv")
    prune = Prune(amount=0.6, granularity="channel", of="macs", allocation="global")
    cut = apply_techniques(model, [prune, Epochs(epochs=2)], run)
    assert (
        0.36 * counts(model, run.example).macs < counts(cut, run.example).macs <= 0.4 * counts(model, run.example).macs
    )


def test_macs_deal_out_channels_otherwise_than_their_number_does():
    run, model = make_run(), make("conv")
    by_number, by_macs = (
        apply_techniques(model, [Prune(amount=0.5, granularity="channel", of=of)], run) for of in ("count", "macs")
    )
    # half of the channels on both sides of a layer are a quarter of its MACs
    assert counts(by_number, run.example).macs < 0.3 * counts(model, run.example).macs
    assert by_macs.blocks[1].conv1.out_channels > by_number.blocks[1].conv1.out_channels


@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_a_target_that_cannot_be_met_says_what_can_before_anything_trains(schedule):
    logged = []
    run = make_run(logger=lambda *entry: logged.append(entry))
    prune = Prune(
        amount=0.9, granularity="channel", of="macs", multiple=16, schedule=schedule, skip=("blocks.1.conv1",)
    )
    with pytest.raises(ModelError, match=r"90\.0% of the MACs cannot go: (\d+\.\d)% would") as caught:
        apply_techniques(make("conv"), [prune, Epochs()], run)
    most = float(re.search(r"go: ([\d.]+)%", caught.value.what)[1]) / 100
    assert "16 channels" in caught.value.what
    assert "lower `multiple`" in caught.value.mend
    assert "shorten `skip`" in caught.value.mend
    assert not logged
    lower = float(re.search(r"`amount` to ([\d.]+)", caught.value.mend)[1])
    assert lower <= most < lower + 0.01
    cut = apply_techniques(make("conv"), [prune.model_copy(update={"amount": lower})], make_run())
    assert counts(cut, run.example).macs <= (1 - lower) * counts(make("conv"), run.example).macs


@pytest.fixture
def time_is_macs(monkeypatch):
    """Time that depends on nothing but the MACs, so that the test does not depend on the machine."""

    def ratio(self, gone):
        cut, example = without(self.model, self.groups, gone), self.watch.example
        assert len(self.watch.dense()) == len(self.watch.opened(cut)()) == 3
        return counts(cut, example).macs / counts(self.model, example).macs

    monkeypatch.setattr("compress_prune.latency.WithoutChannels.__call__", ratio)


def test_a_share_of_the_time_goes_and_what_was_chosen_is_recorded(time_is_macs):
    said, recorded = [], {}
    run = make_run(teller=said.append, recorder=recorded.__setitem__)
    model = make("conv")
    prune = Prune(amount=0.5, granularity="channel", of="latency", batch=3, multiple=4)
    cut = apply_techniques(model, [prune], run)
    assert counts(cut, run.example).macs <= 0.5 * counts(model, run.example).macs
    choice = recorded["prune"]
    assert (choice["runtime"], choice["batch"]) == ("torch", 3)
    assert choice["kept"]["blocks.1.conv1"] == cut.blocks[1].conv1.out_channels
    assert any("of the dense network's time" in text for text in said)
    again = apply_techniques(model, [Prune(amount=0.5, granularity="channel", of="macs", multiple=4)], run)
    assert counts(cut, run.example).macs <= counts(again, run.example).macs * 1.2


def test_time_is_measured_in_the_exporters_runtime(time_is_macs, monkeypatch):
    monkeypatch.setattr("compress_prune.targets.MEASUREMENTS", 0)
    recorded = {}
    prune = Prune(amount=0.5, granularity="channel", of="latency", runtime="onnx", batch=3)
    cut = apply_techniques(make("mlp"), [prune], make_run(recorder=recorded.__setitem__))
    assert recorded["prune"]["runtime"] == "onnx"
    assert cut.layers[1].out_features == recorded["prune"]["kept"]["layers.1"] == 1


def test_a_time_that_cannot_be_met_is_refused(monkeypatch):
    monkeypatch.setattr("compress_core.stopwatch.Stopwatch.__call__", lambda self, network: 0.8)
    with pytest.raises(ModelError, match=r"50\.0% of the time cannot go: 20\.0% would"):
        apply_techniques(make("mlp"), [Prune(amount=0.5, granularity="channel", of="latency")], make_run())


def test_the_network_without_the_channels_is_the_one_that_is_measured(monkeypatch):
    widths = []
    run, model = make_run(), make("mlp")
    groups = groups_of(model, run)
    watch = WithoutChannels(model, groups, lambda network: widths.append(network.layers[1].out_features) or 0.4)
    assert watch([torch.arange(group.size) > 7 for group in groups]) == 0.4
    assert widths == [8]
    assert model.layers[1].out_features == 32


def test_the_runtime_is_a_part_of_the_technique():
    plain = Prune(amount=0.5, granularity="channel", of="latency")
    assert [part.name for part in plain.parts] == ["l2"]
    assert [part.name for part in plain.model_copy(update={"runtime": "onnx"}).parts] == ["l2", "onnx"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"of": "macs"}, "granularity: channel"),
        ({"runtime": "onnx"}, "of: latency"),
        ({"batch": 4}, "of: latency"),
        ({"of": "latency", "granularity": "channel", "runtime": "onyx"}, "did you mean 'onnx'"),
        ({"allocation": "sensitivity", "criterion": "movement"}, "knows nothing before the training"),
        ({"rounds": 3}, "`schedule: iterative` or `schedule: lottery`"),
        ({"rewind": 0.1, "schedule": "iterative"}, "`schedule: lottery`"),
        ({"max_loss": 10}, "`schedule: progressive`"),
        ({"schedule": "progressive"}, "`max_loss` is missing"),
        ({"schedule": "progressive", "max_loss": 10, "step": 0.01}, "is larger than `step`"),
        ({"schedule": "lottery", "criterion": "movement"}, "use `schedule: gradual`"),
        ({"schedule": "iterative", "end": 0.7}, "no `start` and `end`"),
        ({"schedule": "iterative", "pattern": "2:4", "amount": None}, "no share that rounds could raise"),
    ],
)
def test_parameters_that_contradict_one_another_are_refused_by_name(fields, says):
    with pytest.raises(ValidationError, match=says):
        Prune(**{"amount": 0.5, **fields})
