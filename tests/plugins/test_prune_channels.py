"""Pruning whole channels: what is coupled, what is left alone, and that the result is what was asked."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from compress_prune import Prune
from compress_prune.choosing import counts_among, least, nearest_kept, ranking, rounded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.channels.coupling import Group
from compress_core.errors import ModelError
from compress_core.parts import Change
from tests.core.channel_nets import OptionA, seeded, widths
from tests.plugins.test_prune import Epochs, Watch
from tests.support import Classification, ConvNet, DictNet, make, make_run


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_unit_with_the_smallest_norm_of_all_its_weights_goes(criterion, allocation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    order = 1 if criterion == "l1" else 2
    norms = torch.cat([model[1].weight, model[3].weight.t()], 1).norm(order, dim=1)
    stay = norms.argsort(descending=True)[:4].sort().values
    small = apply_techniques(
        model, [Prune(amount=2 / 6, granularity="channel", criterion=criterion, allocation=allocation)], make_run()
    )
    assert torch.equal(small[1].weight, model[1].weight[stay])
    assert torch.equal(small[1].bias, model[1].bias[stay])
    assert torch.equal(small[3].weight, model[3].weight[:, stay])
    assert torch.equal(small[3].bias, model[3].bias)


@pytest.mark.parametrize(
    ("amount", "multiple", "wanted"),
    [(0.5, 1, (8, 16)), (0.3, 1, (11, 22)), (0.99, 1, (1, 1)), (0.5, 8, (8, 16)), (0.6, 8, (8, 16)), (0.9, 8, (8, 8))],
)
def test_the_channels_that_stay_are_as_many_as_asked(amount, multiple, wanted):
    small = apply_techniques(make("conv"), [Prune(amount=amount, granularity="channel", multiple=multiple)], make_run())
    found = widths(small)
    assert (found["stem"], found["blocks.1.conv1"], found["blocks.1.conv2"]) == (*wanted, wanted[1])
    assert found["head"] == 10
    assert small.stem.in_channels == 1
    assert small.head.in_features == wanted[1]


def test_over_the_whole_network_the_total_is_exact_and_layers_differ():
    small = apply_techniques(make("conv"), [Prune(amount=0.4, granularity="channel", allocation="global")], make_run())
    found = widths(small)
    left = [found[path] for path in ("stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.1.conv2")]
    assert sum(left) == 96 - round(0.4 * 96)
    assert min(left) >= 1
    assert len({round(one / size, 2) for one, size in zip(left, (16, 16, 32, 32), strict=True)}) > 1


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    amount=st.floats(0.01, 0.99),
    multiple=st.sampled_from([1, 4, 8, 16]),
    whole=st.booleans(),
    seed=st.integers(0, 50),
)
def test_counts_respect_the_multiple_and_leave_every_layer_something(sizes, amount, multiple, whole, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = [Group(str(size), size, 1, (), ()) for size in sizes]
    scores = [torch.rand(size, generator=generator) for size in sizes]
    none = [torch.zeros(size, dtype=torch.bool) for size in sizes]

    def gone_beside(gone):
        ranked = counts_among(ranking(scores, gone), scores, amount)
        return rounded(groups, ranked if whole else [round(amount * size) for size in sizes], gone, multiple)

    counts = gone_beside(none)
    for size, count in zip(sizes, counts, strict=True):
        kept = size - count
        assert kept >= min(multiple, size)
        assert kept % multiple == 0 or kept == size
    if multiple == 1 and whole:
        assert sum(counts) == min(round(amount * sum(sizes)), sum(sizes) - len(sizes))
    masks = [least(score, count, mask) for score, count, mask in zip(scores, counts, none, strict=True)]
    again = gone_beside(masks)
    assert all(later >= sooner for later, sooner in zip(again, counts, strict=True))
    if multiple == 1 or not whole:
        assert again == counts


def test_what_went_stays_gone_when_a_multiple_would_bring_it_back():
    assert nearest_kept(40, 20.0, 16, at_most=40) == 16
    assert nearest_kept(40, 25.0, 16, at_most=40) == 32
    assert nearest_kept(40, 25.0, 16, at_most=30) == 16
    assert nearest_kept(12, 2.0, 16, at_most=12) == 12


def test_padded_shortcuts_are_left_alone_and_named():
    said: list[str] = []
    model = seeded(OptionA)
    small = apply_techniques(model, [Prune(amount=0.5, granularity="channel")], make_run(teller=said.append))
    before, after = widths(model), widths(small)
    for path in before:
        assert after[path] == (before[path] // 2 if path.endswith("conv1") else before[path])
    assert any("stem" in text and "left alone" in text and "something else" in text for text in said)


def test_of_a_transformer_the_hidden_units_go_and_attention_stays_whole():
    said: list[str] = []
    model = make("transformer")
    small = apply_techniques(model, [Prune(amount=0.25, granularity="channel")], make_run(teller=said.append))
    for layer in small.encoder.layers:
        assert layer.linear1.weight.shape == (24, 16)
        assert layer.linear2.weight.shape == (16, 24)
        assert layer.self_attn.in_proj_weight.shape == (48, 16)
    assert any("self_attn" in text and "LayerNorm works across channels" in text for text in said)


def test_an_lstm_is_refused_with_its_name_and_pruned_weight_by_weight():
    with pytest.raises(ModelError, match="lstm are left alone: LSTM works across channels") as error:
        apply_techniques(make("lstm"), [Prune(amount=0.5, granularity="channel")], make_run())
    assert "granularity: weight" in error.value.mend


def test_a_network_that_takes_and_gives_a_dictionary_is_pruned():
    run = make_run(task=Classification(passing="dictionary"))
    small = apply_techniques(seeded(DictNet), [Prune(amount=0.5, granularity="channel")], run)
    assert widths(small)["net.blocks.1.conv1"] == 16
    assert run.evaluate(small).examples == 350


def test_an_output_beside_the_logits_keeps_its_channels():
    class Features(DictNet):
        def forward(self, inputs):
            x = F.relu(self.net.bn(self.net.stem(inputs["image"])))
            return {"logits": self.net.head(self.net.blocks(x).mean((2, 3))), "features": x}

    run = make_run(task=Classification(passing="dictionary"))
    small = apply_techniques(seeded(Features), [Prune(amount=0.5, granularity="channel")], run)
    assert widths(small)["net.stem"] == 16
    assert widths(small)["net.blocks.1.conv1"] == 16


def test_traced_networks_and_layers_of_other_classes_are_pruned_with_what_they_keep_per_channel():
    class Prepared(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * self.scale[:, None, None]

        def narrow_out(self, keep):
            self.scale = nn.Parameter(self.scale.detach()[keep])

    model = seeded(ConvNet)
    model.blocks[0] = torch.fx.symbolic_trace(model.blocks[0])
    layer = model.blocks[0].conv1
    layer.__class__ = Prepared
    layer.scale = nn.Parameter(torch.arange(16.0))
    small = apply_techniques(model, [Prune(amount=0.5, granularity="channel")], make_run())
    narrowed = small.blocks[0].conv1
    assert narrowed.weight.shape == (8, 8, 3, 3)
    rows = [next(i for i in range(16) if torch.isin(row, layer.weight[i]).all()) for row in narrowed.weight]
    assert narrowed.scale.tolist() == [float(i) for i in rows]


def test_layers_that_observe_in_float32_while_training_are_pruned():
    class Observer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("high", torch.zeros(()))
            self.rate = 0.1

        def forward(self, x):
            if self.training:
                self.high.lerp_(x.detach().amax().float(), self.rate)
            return x

    model = seeded(ConvNet)
    model.blocks[0].bn1 = nn.Sequential(model.blocks[0].bn1, Observer())
    found = widths(apply_techniques(model, [Prune(amount=0.5, granularity="channel")], make_run()))
    assert found["blocks.0.conv1"] == 8
    assert found["blocks.1.conv2"] == 16


def test_a_network_that_makes_float32_of_its_own_is_pruned():
    class Shifted(ConvNet):
        def forward(self, image):
            x = F.relu(self.bn(self.stem(image)))
            table = torch.eye(x.shape[-1])  # a product of float64 and float32 is an error
            return self.head((self.blocks(x @ table)).mean((2, 3)))

    found = widths(apply_techniques(seeded(Shifted), [Prune(amount=0.5, granularity="channel")], make_run()))
    assert (found["stem"], found["blocks.1.conv2"]) == (8, 16)


def test_a_layer_that_another_technique_replaces_while_it_is_pruned_is_named():
    class Replace(Watch):
        name = "a-replacement"
        child: str

        @property
        def changes(self):
            return frozenset({Change.ARCHITECTURE})

        def after_step(self, model, state, progress, run):
            pass

        def finish(self, model, state, run):
            setattr(model.blocks[0], self.child, nn.Sequential(model.blocks[0].get_submodule(self.child)))
            return model

    for child in ("conv1", "bn1"):
        techniques = [Prune(amount=0.5, granularity="channel"), Replace(seen=None, child=child)]
        with pytest.raises(ModelError, match=rf"replaced 'blocks\.0\.{child}'"):
            apply_techniques(make("conv"), techniques, make_run())


def test_skipped_layers_keep_their_output_channels_and_all_that_is_coupled_with_them():
    small = apply_techniques(
        make("conv"), [Prune(amount=0.5, granularity="channel", skip=("stem", "blocks.1.conv1"))], make_run()
    )
    found = widths(small)
    assert (found["stem"], found["blocks.0.conv2"], found["blocks.1.conv1"]) == (16, 16, 32)
    assert (found["blocks.0.conv1"], found["blocks.1.conv2"]) == (8, 16)


def test_a_multiple_that_leaves_nothing_to_prune_says_so():
    said: list[str] = []
    model = make("conv")
    same = apply_techniques(
        model, [Prune(amount=0.5, granularity="channel", multiple=32)], make_run(teller=said.append)
    )
    assert widths(same) == widths(model)
    assert "nothing changed" in said[-1]


def test_frozen_parameters_stay_frozen_and_the_input_stays_as_it_is():
    model = make("conv")
    model.stem.weight.requires_grad_(False)
    before = deepcopy(model.state_dict())
    small = apply_techniques(model, [Prune(amount=0.5, granularity="channel")], make_run())
    assert not small.stem.weight.requires_grad
    assert small.blocks[0].conv1.weight.requires_grad
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_while_training_channels_go_one_by_one_and_never_come_back():
    seen = []
    techniques = [Prune(amount=0.5, granularity="channel", end=0.6), Epochs(epochs=3), Watch(seen=seen)]
    small = apply_techniques(make("conv"), techniques, make_run())
    counts = []
    before = torch.zeros(16, dtype=torch.bool)
    for _, masks in seen:
        rows = masks[0].flatten(1).all(1)
        assert (rows | ~before).all()
        counts.append(int(rows.sum()))
        before = rows
    assert counts[-1] == 8
    assert set(counts) == set(range(counts[0], 9))
    assert small.stem.weight.shape[0] == 8
    assert not (small.stem.weight.flatten(1) == 0).all(1).any()


@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_half_of_the_channels_go_while_the_digits_are_learned(schedule, tmp_path):
    run = make_run()
    techniques = [Prune(amount=0.5, granularity="channel", schedule=schedule), Epochs(epochs=8)]
    small = apply_techniques(seeded(ConvNet), techniques, run)
    assert sum(p.numel() for p in small.parameters()) == 5122
    assert run.evaluate(small).value >= 0.95
    save(small, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    (image,), _ = run.example
    assert torch.equal(loaded(image), small(image))
    again = apply_techniques(loaded, [Epochs(epochs=3)], run)
    assert run.evaluate(again).value >= 0.9
    assert not torch.equal(again.stem.weight, loaded.stem.weight)
