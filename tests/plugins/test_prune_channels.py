"""Pruning whole channels: what is coupled, what is left alone, and that the result is what was asked."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from compress_prune import Prune
from compress_prune.choosing import counts_gone, least, nearest_kept
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.channels.coupling import Group, coupled_groups, cut_keeps, keeps_of, zero_keeps
from compress_core.channels.cutting import CannotCut, cut_channels, zero_channels
from compress_core.channels.proof import check_cut, proven
from compress_core.errors import ModelError
from compress_core.parts import Change
from tests.plugins.test_prune import Epochs, Watch
from tests.support import Classification, ConvNet, DictNet, make, make_run


class PaddedBlock(nn.Module):
    """He et al. 2016, option A: a shortcut that skips pixels and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class OptionA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(PaddedBlock(16, 16), PaddedBlock(16, 32), PaddedBlock(32, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        return self.head(self.blocks(F.relu(self.bn(self.stem(image)))).mean((2, 3)))


class Concatenated(nn.Module):
    """DenseNet's way: every layer reads all before it, a BatchNorm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, 1, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(20), nn.Conv2d(20, 6, 3, 1, 1)
        self.head = nn.Linear(26, 10)

    def forward(self, image):
        x = self.stem(image)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """MobileNet's block with a squeeze-and-excitation gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.bn1 = nn.Conv2d(1, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depth, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.down, self.act = nn.Conv2d(16, 12, 1), nn.PReLU(12)
        self.head = nn.Linear(12 * 16, 10)

    def forward(self, image):
        x = F.relu6(self.bn2(self.depth(F.relu6(self.bn1(self.up(image))))))
        gate = torch.sigmoid(self.excite(torch.sigmoid(self.squeeze(x.mean((2, 3))))))
        x = self.act(self.down(x * gate[:, :, None, None]))
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    """ResNeXt's block: the middle convolution has four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn1 = nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.two, self.bn2 = nn.Conv2d(16, 24, 3, 1, 1, groups=4), nn.BatchNorm2d(24, affine=False)
        self.three = nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, image):
        x = torch.sigmoid(self.bn2(self.two(torch.sigmoid(self.bn1(self.one(image))))))
        return self.head(F.softplus(self.three(x)).mean((2, 3)))


class Scaled(nn.Module):
    """Bare parameters per channel, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 2, 1)
        self.gamma = nn.Parameter(torch.full((1, 8, 1, 1), 1e-6))
        self.wide, self.norm = nn.ConvTranspose2d(8, 6, 2, 2), nn.InstanceNorm2d(6, affine=True)
        self.head = nn.Linear(6 * 64, 10)

    def forward(self, image):
        x = self.conv(image) * self.gamma
        return self.head(F.gelu(self.norm(self.wide(x))).flatten(1))


class Gated(nn.Module):
    """A gated linear unit: the halves of one convolution multiply each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(8, 12, 3, 1, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, image):
        left, right = self.conv(image).chunk(2, 1)
        return self.head(F.relu(self.after(left * torch.sigmoid(right))).mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight between others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.two, self.three = nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.fourth, self.head = nn.Linear(20, 14), nn.Linear(14, 10)
        self.three.weight = self.two.weight

    def forward(self, image):
        x = F.relu(self.two(F.relu(self.first(image.flatten(1)))))
        return self.head(F.relu(self.fourth(F.relu(self.three(x)))))


class Normed(nn.Module):
    """GroupNorm behind the first convolution, none behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 8, 3, 1, 1), nn.GroupNorm(2, 8)
        self.conv2, self.head = nn.Conv2d(8, 12, 3, 1, 1), nn.Linear(12, 10)

    def forward(self, image):
        return self.head(F.relu(self.conv2(F.relu(self.norm(self.conv1(image))))).mean((2, 3)))


class Attention(nn.Module):
    """Attention written out: channels are dealt out to heads, and their number scales the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.value, self.mix = nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = self.embed(image.squeeze(1))
        query, key, value = (
            layer(x).view(len(x), 8, 2, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


class Words(nn.Module):
    """An embedding and bare positions that a linear layer adds to, read by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(17, 12), nn.Parameter(torch.randn(64, 12))
        self.before, self.conv, self.head = nn.Linear(12, 12), nn.Conv1d(12, 16, 3), nn.Linear(16, 10)

    def forward(self, image):
        x = self.embed((image.flatten(1) * 16).long())
        x = x + self.position + self.before(torch.tanh(x))
        return self.head(F.gelu(self.conv(x.transpose(1, 2))).amax(-1))


def seeded(build, **fields):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = build(**fields)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
    return model.eval()


def groups_of(model, run):
    found, _ = coupled_groups(model, run)
    return proven(model, found, run)[0]


def widths(model):
    return {
        path: module.weight.shape[int(getattr(module, "transposed", False))]
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }


NETWORKS = {
    "residual": (
        ConvNet,
        {"stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.skip.0"},
    ),
    "option-a": (OptionA, {"blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"}),
    "concatenated": (Concatenated, {"stem", "conv1", "conv2"}),
    "depthwise": (Depthwise, {"up", "depth", "squeeze", "excite", "down"}),
    "grouped": (Grouped, {"one", "two", "three"}),
    "scaled": (Scaled, {"conv", "wide"}),
    "gated": (Gated, {"after"}),
    "tied": (Tied, {"fourth"}),
    "normed": (Normed, {"conv2"}),
    "attention": (Attention, {"up"}),
    "words": (Words, {"before", "conv"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_computes_what_the_dense_one_does_with_zeros(name):
    build, pruned_layers = NETWORKS[name]
    model, run = seeded(build), make_run()
    (image,), _ = run.example
    groups = groups_of(model, run)
    before = widths(model)
    small = apply_techniques(model, [Prune(amount=0.5, granularity="channel")], run)
    after = widths(small)
    assert {path for path in before if after[path] < before[path]} == pruned_layers
    scores = [torch.rand(group.size, generator=torch.Generator().manual_seed(3)) for group in groups]
    gone = [
        least(score, group.size // 2, torch.zeros(group.size, dtype=torch.bool), group.blocks)
        for score, group in zip(scores, groups, strict=True)
    ]
    keeps = keeps_of(groups, gone)
    masked, cut = deepcopy(model), deepcopy(model)
    zero_keeps(masked, keeps)
    cut_keeps(cut, keeps)
    with torch.no_grad():
        assert not torch.equal(model(image), masked(image))
        assert torch.allclose(cut(image), masked(image), atol=1e-5)
    cut.train()(image)
    for module in cut.modules():
        if isinstance(module, nn.Conv2d):
            rows, columns = module.weight.shape[:2]
            assert (module.out_channels, module.in_channels) == (rows, columns * module.groups)
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape


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
    counts = counts_gone(groups, scores, none, amount, multiple, whole=whole)
    for size, count in zip(sizes, counts, strict=True):
        kept = size - count
        assert kept >= min(multiple, size)
        assert kept % multiple == 0 or kept == size
    if multiple == 1 and whole:
        assert sum(counts) == min(round(amount * sum(sizes)), sum(sizes) - len(sizes))
    masks = [least(score, count, mask) for score, count, mask in zip(scores, counts, none, strict=True)]
    again = counts_gone(groups, scores, masks, amount, multiple, whole=whole)
    assert all(later >= sooner for later, sooner in zip(again, counts, strict=True))
    if multiple == 1 or not whole:
        assert again == counts


def test_what_went_stays_gone_when_a_multiple_would_bring_it_back():
    assert nearest_kept(40, 20.0, 16, at_most=40) == 16
    assert nearest_kept(40, 25.0, 16, at_most=40) == 32
    assert nearest_kept(40, 25.0, 16, at_most=30) == 16
    assert nearest_kept(12, 2.0, 16, at_most=12) == 12


def test_blocks_of_a_grouped_convolution_keep_the_same_number_and_their_own_channels():
    conv = nn.Conv2d(8, 4, 1, groups=2)
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    masked, cut = deepcopy(conv), deepcopy(conv)
    zero_channels(masked, "in", keep)
    cut_channels(cut, "in", keep)
    x = torch.randn(2, 8, 3, 3)
    assert torch.allclose(cut(x[:, keep]), masked(x), atol=1e-6)
    assert cut.weight.shape == (4, 3, 1, 1)
    with pytest.raises(CannotCut, match="different numbers"):
        cut_channels(conv, "in", torch.tensor([1, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool))


def test_padded_shortcuts_are_left_alone_and_named():
    said: list[str] = []
    model = seeded(OptionA)
    small = apply_techniques(model, [Prune(amount=0.5, granularity="channel")], make_run(teller=said.append))
    before, after = widths(model), widths(small)
    for path in before:
        assert after[path] == (before[path] // 2 if path.endswith("conv1") else before[path])
    assert any("stem" in text and "left alone" in text and "something else" in text for text in said)


def test_a_wrong_coupling_is_refused_by_name_and_not_saved():
    model, run = seeded(OptionA), make_run()
    found, _ = coupled_groups(model, run)
    wrong = next(group for group in found if "stem" in group.writers)
    gone = torch.arange(16) % 2 == 0
    cut = deepcopy(model)
    cut_keeps(cut, keeps_of([wrong], [gone]))
    assert cut(run.example[0][0]).shape == (2, 10)  # it runs, and computes something else
    with pytest.raises(ModelError, match=r"channels of .*stem.* would break"):
        check_cut(model, keeps_of([wrong], [gone]), run)


def test_a_dead_network_does_not_hide_a_wrong_coupling():
    model, run = seeded(OptionA), make_run()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert sorted(group.name for group in groups_of(model, run)) == [f"blocks.{i}.conv1" for i in range(3)]


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
