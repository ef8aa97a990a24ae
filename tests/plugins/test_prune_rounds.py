"""Pruning by rounds: iterative, as a lottery, and progressively within a bound."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from compress_distill import Distill
from compress_prune import Prune
from compress_prune.rounds import shares
from compress_tune import Tune
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError, TrainingError
from compress_core.masks import masked_tensors
from compress_core.parts import Change, TrainingTechnique
from compress_core.testing import Epochs
from compress_core.weights import weights
from tests.support import Transformer, make, make_run


class Watch(TrainingTechnique):
    """Keeps the weights of the first update of each training, and the zeros of all."""

    name = "test-watch"
    firsts: Any
    zeros: Any

    @property
    def changes(self) -> frozenset[Change]:
        return frozenset({Change.TRAINING})

    def begin(self, model, run):
        self.firsts.append([place.parameter.detach().clone() for place in weights(model)])
        self.zeros.append([])

    def after_step(self, model, state, progress, run):
        self.zeros[-1].append([place.parameter.detach() == 0 for place in weights(model)])


class Spoil(TrainingTechnique):
    """A training that ruins the network."""

    name = "test-spoil"

    @property
    def changes(self) -> frozenset[Change]:
        return frozenset({Change.TRAINING})

    def finish(self, model, state, run):
        with torch.no_grad():
            for place in weights(model):
                place.parameter.zero_()
        return model


def gone(model):
    return [int((place.parameter == 0).sum()) for place in weights(model)]


def sizes(model):
    return [place.parameter.numel() for place in weights(model)]


@pytest.fixture(scope="module")
def trained():
    return apply_techniques(make("mlp"), [Epochs(epochs=8, learning_rate=3e-3)], make_run())


def test_geometric_rounds_take_the_same_share_of_what_is_left_and_linear_ones_of_all():
    assert shares(0.875, 3, "geometric") == pytest.approx([0.5, 0.75, 0.875])
    assert shares(0.6, 3, "linear") == pytest.approx([0.2, 0.4, 0.6])
    # Frankle & Carbin 2019: 20 % of what is left in each of 15 rounds leaves 3.5 %
    assert 1 - shares(1 - 0.8**15, 15, "geometric")[-1] == pytest.approx(0.0352, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(amount=st.floats(0.01, 0.99), rounds=st.integers(1, 12), spacing=st.sampled_from(["geometric", "linear"]))
def test_rounds_rise_to_exactly_the_amount(amount, rounds, spacing):
    found = shares(amount, rounds, spacing)
    assert len(found) == rounds
    assert found[-1] == amount
    assert all(one < other for one, other in pairwise(found))


def test_each_round_takes_more_and_no_removed_weight_comes_back(trained):
    firsts, zeros = [], []
    techniques = [Prune(amount=0.875, schedule="iterative", rounds=3), Epochs(), Watch(firsts=firsts, zeros=zeros)]
    pruned = apply_techniques(trained, techniques, make_run())
    assert len(zeros) == 3
    for steps, share in zip(zeros, (0.5, 0.75, 0.875), strict=True):
        for masks in steps:
            assert [int(mask.sum()) for mask in masks] == [round(share * size) for size in sizes(trained)]
    flat = [masks for steps in zeros for masks in steps]
    for before, after in pairwise(flat):
        assert all((new | ~old).all() for old, new in zip(before, after, strict=True))
    assert masked_tensors(pruned) == sorted(place.name for place in weights(pruned))
    assert gone(pruned) == [round(0.875 * size) for size in sizes(trained)]


def test_a_round_goes_on_from_the_weights_of_the_round_before(trained):
    firsts = []
    techniques = [Prune(amount=0.5, schedule="iterative", rounds=2), Epochs(), Watch(firsts=firsts, zeros=[])]
    apply_techniques(trained, techniques, make_run())
    survivors = firsts[1][0] != 0
    assert not torch.equal(firsts[1][0][survivors], firsts[0][0][survivors])


@pytest.mark.parametrize("rewind", [0.0, 0.5])
def test_a_lottery_gives_survivors_their_early_weights_before_each_training(rewind):
    model = make("mlp")
    firsts, zeros = [], []
    prune = Prune(amount=0.6, schedule="lottery", rounds=2, rewind=rewind, allocation="global")
    ticket = apply_techniques(model, [prune, Epochs(epochs=2), Watch(firsts=firsts, zeros=zeros)], make_run())
    assert len(firsts) == 3  # one dense training before the two rounds
    early = firsts[0]
    if rewind:
        half = apply_techniques(model, [Epochs(epochs=1)], make_run())  # Adam's rate is constant: the same first epoch
        early = [place.parameter.detach() for place in weights(half)]
    for started in firsts[1:]:
        for weight, own in zip(started, early, strict=True):
            assert torch.equal(weight, torch.where(weight == 0, 0.0, own))
    assert sum(gone(ticket)) == round(0.6 * sum(sizes(model)))
    assert sum(int((weight == 0).sum()) for weight in firsts[1]) == round((1 - 0.4**0.5) * sum(sizes(model)))


def test_a_winning_ticket_learns_as_well_as_the_dense_network_and_better_than_chance_would():
    run, model = make_run(), make("mlp")
    training = Epochs(epochs=6, learning_rate=3e-3)
    dense = run.evaluate(apply_techniques(model, [training], run)).value
    lottery = Prune(amount=0.8, schedule="lottery", rounds=3, allocation="global")
    ticket = run.evaluate(apply_techniques(model, [lottery, training], run)).value
    lots = Prune(amount=0.8, schedule="one-shot", criterion="random", allocation="global")
    chance = run.evaluate(apply_techniques(model, [lots, training], run)).value
    assert ticket >= dense - 0.03
    assert ticket > chance


def test_rounds_share_a_step_with_a_teacher_and_a_chosen_optimizer(trained, tmp_path):
    firsts, zeros = [], []
    run = make_run(teacher=trained)
    techniques = [
        Prune(amount=0.7, schedule="iterative", rounds=2),
        Distill(temperature=4.0),
        Tune(optimizer="adamw", learning_rate=5e-3, epochs=4),
        Watch(firsts=firsts, zeros=zeros),
    ]
    pruned = apply_techniques(trained, techniques, run)
    assert all(int(masks[0].sum()) == round(0.7 * 64 * 32) for masks in zeros[1])
    assert run.evaluate(pruned).value >= run.evaluate(trained).value - 0.03
    save(pruned, tmp_path / "model", factory="tests.support:MLP")
    loaded = load(tmp_path / "model", factory="tests.support:MLP")
    again = apply_techniques(loaded, [Epochs()], make_run())
    assert gone(again) == gone(pruned) == [round(0.7 * size) for size in sizes(trained)]


def test_channels_are_cut_once_at_the_end_to_multiples_of_the_whole_network():
    model = apply_techniques(make("conv"), [Epochs(epochs=2)], make_run())
    prune = Prune(amount=0.5, granularity="channel", schedule="iterative", rounds=3, multiple=8)
    cut = apply_techniques(model, [prune, Epochs()], make_run())
    assert (cut.stem.out_channels, cut.blocks[1].conv1.out_channels, cut.head.in_features) == (8, 16, 16)
    assert not masked_tensors(cut)


def test_a_lottery_of_channels_starts_from_the_early_weights_too():
    firsts = []
    model = make("mlp")
    prune = Prune(amount=0.5, granularity="channel", schedule="lottery", rounds=1)
    cut = apply_techniques(model, [prune, Epochs(), Watch(firsts=firsts, zeros=[])], make_run())
    hidden = firsts[1][1]
    assert torch.equal(hidden, torch.where(hidden == 0, 0.0, model.layers[3].weight))
    assert cut.layers[3].weight.shape == (16, 16)


def test_progressive_pruning_stops_within_the_bound_where_the_smallest_step_fails(trained):
    curves, told = [], []
    run = make_run(plotter=curves.append, printer=told.append)
    before = run.evaluate(trained).value
    prune = Prune(amount=0.99, schedule="progressive", max_loss=3.0, step=0.4, smallest_step=0.1)
    pruned = apply_techniques(trained, [prune, Epochs(epochs=2, learning_rate=3e-3)], run)
    assert run.evaluate(pruned).value >= before - 0.03 - 1e-9
    share = sum(gone(pruned)) / sum(sizes(pruned))
    assert 0.4 < share < 0.99
    attempts = [re.match(r"prune: ([\d.]+)% gone, accuracy ([\d.]+), (.*)", text) for text in told]
    tried = [(float(found[1]) / 100, float(found[2]), found[3]) for found in attempts if found]
    assert all((verdict == "kept") == (value >= before - 0.03 - 1e-4) for _, value, verdict in tried)
    assert max(part for part, _, verdict in tried if verdict == "kept") == pytest.approx(share, abs=1e-3)
    last, _, verdict = tried[-1]
    assert verdict == "taken back"  # with the smallest step: 0.4, halved twice
    assert last == pytest.approx(1 - (1 - share) * (1 - 0.1), abs=1e-3)
    assert len(curves[0].points) == len(tried) + 1


def test_progressive_pruning_goes_no_further_than_the_amount(trained):
    pruned = apply_techniques(trained, [Prune(amount=0.3, schedule="progressive", max_loss=50.0)], make_run())
    assert gone(pruned) == [round(0.3 * size) for size in sizes(trained)]


def test_progressive_pruning_of_channels_by_macs_keeps_the_bound_without_training(trained):
    run = make_run()
    prune = Prune(amount=0.9, granularity="channel", of="macs", schedule="progressive", max_loss=2.0, step=0.1)
    cut = apply_techniques(trained, [prune], run)
    assert run.evaluate(cut).value >= run.evaluate(trained).value - 0.02 - 1e-9
    assert sum(sizes(cut)) < sum(sizes(trained))


def test_if_no_step_holds_nothing_changes_and_it_says_so(trained):
    said = []
    prune = Prune(amount=0.9, schedule="progressive", max_loss=0.0, step=0.8, smallest_step=0.8)
    same = apply_techniques(trained, [prune], make_run(teller=said.append))
    assert gone(same) == gone(trained)
    assert "nothing changed" in said[-1]


def test_a_bound_that_even_no_pruning_meets_is_refused_with_the_figures(trained):
    run = make_run()
    quality = run.evaluate(trained).value
    with pytest.raises(TrainingError, match="even with nothing pruned") as caught:
        apply_techniques(trained, [Prune(amount=0.5, schedule="progressive", max_loss=1.0), Spoil()], run)
    assert f"{quality:.4f}" in caught.value.what
    assert "at most 1 points" in caught.value.what
    assert "raise `max_loss` above" in caught.value.mend


def test_the_bound_is_the_teachers_where_there_is_one(trained):
    with pytest.raises(TrainingError, match="which the teacher has"):
        apply_techniques(
            make("mlp"), [Prune(amount=0.5, schedule="progressive", max_loss=1.0)], make_run(teacher=trained)
        )


def test_layers_that_another_technique_replaces_between_rounds_are_refused():
    class Widen(TrainingTechnique):
        name = "test-widen"

        @property
        def changes(self) -> frozenset[Change]:
            return frozenset({Change.ARCHITECTURE})

        def prepare(self, model, run):
            width = model.layers[3].out_features + 8
            model.layers[3], model.layers[5] = torch.nn.Linear(32, width), torch.nn.Linear(width, 10)
            return model

    with pytest.raises(ModelError, match="changes the layers of the network from round to round"):
        apply_techniques(
            make("mlp"), [Prune(amount=0.5, schedule="iterative", rounds=2), Widen(), Epochs()], make_run()
        )


def test_the_same_seed_gives_the_same_bytes(trained):
    techniques = [Prune(amount=0.6, schedule="iterative", rounds=2, allocation="global"), Epochs()]
    one, two = (apply_techniques(trained, techniques, make_run(seed=3)) for _ in range(2))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_what_rounds_choose_by_measuring_is_recorded_once_for_the_network_that_is_kept(monkeypatch):
    def ratio(self, gone):
        return 1 - 0.7 * sum(int(mask.sum()) for mask in gone) / sum(len(mask) for mask in gone)

    monkeypatch.setattr("compress_prune.latency.WithoutChannels.__call__", ratio)
    recorded, said = [], []
    run = make_run(recorder=lambda name, value: recorded.append(value), teller=said.append)
    prune = Prune(amount=0.5, granularity="channel", of="latency", schedule="iterative", rounds=2)
    cut = apply_techniques(make("mlp"), [prune, Epochs()], run)
    assert [choice["kept"]["layers.1"] for choice in recorded] == [cut.layers[1].out_features]
    assert sum("of the dense network's time" in text for text in said) == 1


def test_curves_of_the_first_round_are_shown_once(trained):
    curves = []
    prune = Prune(amount=0.5, allocation="sensitivity", schedule="iterative", rounds=3)
    apply_techniques(trained, [prune, Epochs()], make_run(plotter=curves.append))
    names = [curve.name for curve in curves]
    assert len(set(names)) == len(names) == 4  # three layers and the rounds


def test_blocks_go_round_by_round_to_the_share_of_all():
    seen = []
    firsts = Watch(firsts=seen, zeros=[])
    said = []
    net = Transformer(layers=5)
    prune = Prune(amount=0.6, granularity="depth", schedule="iterative", rounds=3, spacing="linear")
    cut = apply_techniques(net, [prune, Epochs(), firsts], make_run(teller=said.append))
    assert len(cut.encoder.layers) == 2
    assert [len(found) for found in seen] == [len(seen[0]) - step * (len(seen[0]) - len(seen[1])) for step in range(3)]
    none = Prune(amount=0.1, granularity="depth", schedule="iterative", rounds=2)
    apply_techniques(Transformer(layers=2), [none, Epochs()], make_run(teller=said.append))
    assert "10% of 2 blocks is none: nothing changed" in said[-1]
