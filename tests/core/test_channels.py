"""Which channels belong together, and that a network without them computes what it computes with zeros."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from compress_zoo import ResNet20
from torch import nn

from compress_core.channels.coupling import Group, LeftAlone, coupled_groups, cut_keeps, keeps_of, misfit, zero_keeps
from compress_core.channels.cutting import CannotCut, cut_channels, zero_channels
from compress_core.channels.proof import check_cut, proven
from compress_core.errors import ModelError
from tests.core import channel_nets as nets
from tests.core.channel_nets import seeded, widths
from tests.support import ConvNet, make, make_run

NETWORKS = {
    "residual": (ConvNet, "stem blocks.0.conv1 blocks.0.conv2 blocks.1.conv1 blocks.1.conv2 blocks.1.skip.0", {}),
    "option-a": (
        nets.OptionA,
        "blocks.0.conv1 blocks.1.conv1 blocks.2.conv1",
        dict.fromkeys(("stem", "blocks.1.conv2", "blocks.2.conv2"), "something else"),
    ),
    "concatenated": (nets.Concatenated, "stem conv1 conv2", {}),
    "depthwise": (nets.Depthwise, "up depth squeeze excite down", {}),
    "grouped": (nets.Grouped, "one two three", {}),
    "scaled": (nets.Scaled, "conv wide", {}),
    "gated": (nets.Gated, "after", {"conv": ""}),
    "tied": (nets.Tied, "fourth", {"two": "shares its weight", "three": "shares its weight"}),
    "normed": (nets.Normed, "conv2", {"conv1": "GroupNorm works across channels"}),
    "attention": (nets.Attention, "up", {"embed": "LayerNorm", "query": "", "value": ""}),
    "words": (nets.Words, "before conv embed", {}),
    "viewed": (nets.Viewed, "conv hidden", {}),
    "viewed-by-product": (nets.ViewedByProduct, "conv hidden", {}),
    "viewed-by-number": (nets.ViewedByNumber, "hidden", {"conv": "does not run"}),
    "shuffled": (nets.Shuffled, "one", {"two": "does not run", "depth": "does not run"}),
    "multiplied": (nets.Multiplied, "two depth", {"one": "one channel"}),
    "tied-words": (nets.TiedWords, "up", {"out": "shares its weight", "embed": "embed shares its weight"}),
    "two-gates": (nets.TwoGates, "gate up down", {}),
    "lstm": (nets.ConvLSTM, "after", {"conv": "LSTM works across channels", "lstm": "LSTM works across channels"}),
    "called": (nets.Called, "one twice two", {}),
    "parted": (nets.Parted, "two", {"one": "does not run", "part": "does not run"}),
    "softmaxed": (nets.Softmaxed, "two", {"one": "something else"}),
    "every-second": (nets.EverySecond, "two", {"one": "does not run"}),
    "pixel-shuffled": (nets.PixelShuffled, "two", {"one": "fewer channels"}),
    "in-place": (nets.InPlace, "one two three", {}),
}
"""For each network the layers whose output channels can go, and those whose cannot, with a part of the reason."""


def found_in(model, run) -> tuple[list[Group], list[LeftAlone]]:
    groups, left = coupled_groups(model, run)
    groups, wrong = proven(model, groups, run)
    return groups, left + wrong


def half_of(groups, seed=3) -> list[torch.Tensor]:
    """Masks of a random half of the channels, of each block."""
    generator = torch.Generator().manual_seed(seed)
    gone = []
    for group in groups:
        rows = torch.rand(group.blocks, group.size // group.blocks, generator=generator)
        order = rows.argsort(1)[:, : rows.shape[1] // 2]
        gone.append(torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True).reshape(-1))
    return gone


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_whose_channels_can_go_and_those_that_are_left_alone_with_the_reason(name):
    build, wanted, reasons = NETWORKS[name]
    groups, left = found_in(seeded(build), make_run())
    assert {writer for group in groups for writer in group.writers} == set(wanted.split())
    told = {path: entry.reason for entry in left for path in entry.names}
    assert set(reasons) <= set(told)
    for path, reason in reasons.items():
        assert reason in told[path]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_channels_computes_what_it_does_with_zeros(name):
    model, run = seeded(NETWORKS[name][0]), make_run()
    (image,), _ = run.example
    groups, _ = found_in(model, run)
    before = widths(model)
    keeps = keeps_of(groups, half_of(groups))
    masked, cut = deepcopy(model), deepcopy(model)
    zero_keeps(masked, keeps)
    cut_keeps(cut, keeps)
    with torch.no_grad():
        assert not torch.equal(model(image), masked(image))
        assert torch.allclose(cut(image), masked(image), atol=1e-5)
    cut.train()(image)
    after = widths(cut)
    assert after["head"] == before["head"]
    for path in NETWORKS[name][1].split():
        if path in before:
            assert after[path] < before[path]
    for module in cut.modules():
        if isinstance(module, nn.Conv2d):
            rows, columns = module.weight.shape[:2]
            assert (module.out_channels, module.in_channels) == (rows, columns * module.groups)
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape


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


def test_a_wrong_coupling_is_refused_by_name_and_not_saved():
    model, run = seeded(nets.OptionA), make_run()
    found, _ = coupled_groups(model, run)
    wrong = next(group for group in found if "stem" in group.writers)
    gone = torch.arange(16) % 2 == 0
    cut = deepcopy(model)
    cut_keeps(cut, keeps_of([wrong], [gone]))
    assert cut(run.example[0][0]).shape == (2, 10)  # it runs, and computes something else
    with pytest.raises(ModelError, match=r"channels of .*stem.* would break"):
        check_cut(model, keeps_of([wrong], [gone]), run)


def test_a_dead_network_does_not_hide_a_wrong_coupling():
    model, run = seeded(nets.OptionA), make_run()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert sorted(group.name for group in found_in(model, run)[0]) == [f"blocks.{i}.conv1" for i in range(3)]


def test_numbers_that_a_module_keeps_of_its_channels_are_lowered_and_no_others():
    for build, name, before in ((nets.Viewed, "width", 12), (nets.ViewedByProduct, "pooled", 48)):
        model, run = seeded(build), make_run()
        groups, _ = found_in(model, run)
        keeps = keeps_of(groups, [torch.arange(group.size) < group.size // 4 for group in groups])
        cut_keeps(model, keeps)
        wanted = {"width": 12, "pooled": 48, "classes": 10} | {name: before * 3 // 4}
        assert {key: getattr(model, key) for key in wanted} == wanted


def test_groups_that_are_right_alone_and_wrong_together_are_not_both_pruned():
    class Twice(nets.Viewed):
        """One number counts the channels of two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.second, self.last = nn.Conv2d(1, 12, 3, 1, 1), nn.Linear(48, 10)

        def forward(self, image):
            other = self.flat(self.pool(torch.tanh(self.second(image))))
            return super().forward(image) + self.last(other)

    model, run = seeded(Twice), make_run()
    groups, left = found_in(model, run)
    writers = {writer for group in groups for writer in group.writers}
    assert len(writers & {"conv", "second"}) < 2
    assert {name for entry in left for name in entry.names} >= {"conv", "second"} - writers


def test_across_padding_shortcuts_three_groups_of_streams_are_joined():
    """16 channels run through all three stages, 16 more through the last two, 32 are the last stage's own."""
    model, run = ResNet20(inputs=1).eval(), make_run()
    groups, left = found_in(model, run)
    streams = {group.name: group for group in groups if len(group.writers) > 1}
    assert {name: group.size for name, group in streams.items()} == {
        "conv1": 16,
        "layer2.0.conv2": 16,
        "layer3.0.conv2": 32,
    }
    assert left == []
    columns = {
        group.name: {member.place[0]: member.index[member.root.argsort()].tolist() for member in group.members}
        for group in streams.values()
    }
    assert columns["conv1"]["layer1.0.conv1"] == list(range(16))
    assert columns["conv1"]["layer2.1.conv1"] == list(range(8, 24))
    assert columns["conv1"]["linear"] == list(range(24, 40))
    assert columns["layer2.0.conv2"]["layer2.1.conv1"] == [*range(8), *range(24, 32)]
    assert columns["layer2.0.conv2"]["linear"] == [*range(16, 24), *range(40, 48)]
    assert columns["layer3.0.conv2"]["linear"] == [*range(16), *range(48, 64)]


def test_a_resnet_with_padding_shortcuts_computes_the_same_without_channels():
    model, run = ResNet20(inputs=1).eval(), make_run()
    (image,), _ = run.example
    groups, _ = found_in(model, run)
    keeps = keeps_of(groups, half_of(groups))
    masked, cut = deepcopy(model), deepcopy(model)
    zero_keeps(masked, keeps)
    cut_keeps(cut, keeps)
    with torch.no_grad():
        assert torch.allclose(cut(image), masked(image), atol=1e-4)
    assert cut.layer2[0].shortcut.inputs == 8
    assert cut.layer2[0].shortcut.outputs == cut.layer3[0].shortcut.inputs == 16
    assert cut.layer3[0].shortcut.outputs == cut.linear.in_features == 32
    again, left = found_in(cut, run)
    assert sum(group.size for group in again) == sum(group.size for group in groups) // 2
    assert left == []


def test_channels_that_a_padding_shortcut_joins_to_channels_that_stay_stay_too():
    model, run = ResNet20(inputs=1).eval(), make_run()
    groups, left = coupled_groups(model, run, skip={"layer1.0.conv2"})
    streams = {group.name: group.size for group in groups if len(group.writers) > 1}
    assert streams == {"layer2.0.conv2": 16, "layer3.0.conv2": 32}
    assert any("conv1" in entry.names and "layer1.0.conv2 shall keep its channels" in entry.reason for entry in left)
    (image,), _ = run.example
    keeps = keeps_of(groups, half_of(groups))
    masked, cut = deepcopy(model), deepcopy(model)
    zero_keeps(masked, keeps)
    cut_keeps(cut, keeps)
    with torch.no_grad():
        assert torch.allclose(cut(image), masked(image), atol=1e-4)
    assert cut.conv1.out_channels == 16
    assert cut.layer2[0].shortcut.outputs == 24


def test_places_that_are_gone_or_of_another_size_are_named():
    model, run = seeded(nets.Viewed), make_run()
    groups, _ = found_in(model, run)
    keeps = keeps_of(groups, half_of(groups))
    assert misfit(model, keeps) is None
    model.width = 7
    assert misfit(model, keeps) == "width"
    model.width = 12
    model.conv = nn.Sequential(model.conv)
    assert misfit(model, keeps) == "conv"


def test_a_network_that_cannot_be_traced_says_where():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, image):
            raise RuntimeError("no such thing")

    with pytest.raises(ModelError, match=r"cannot be traced: RuntimeError: no such thing \(test_channels.py, line"):
        coupled_groups(Broken(), make_run())


def test_no_message_of_the_core_names_a_parameter_of_a_technique():
    model, run = seeded(nets.OptionA), make_run()
    found, left = coupled_groups(model, run, skip={"blocks.0.conv1"})
    assert "blocks.0.conv1 shall keep its channels" in [entry.reason for entry in left]
    stem = next(group for group in found if "stem" in group.writers)
    with pytest.raises(ModelError) as error:
        check_cut(model, keeps_of([stem], [torch.arange(16) % 2 == 0]), run)
    assert "`" not in str(error.value)


def test_the_kits_networks_are_read_as_they_are():
    pruned = {
        name: {writer for group in found_in(make(name), make_run())[0] for writer in group.writers}
        for name in ("mlp", "transformer", "lstm")
    }
    assert pruned == {
        "mlp": {"layers.1", "layers.3"},
        "transformer": {"encoder.layers.0.linear1", "encoder.layers.1.linear1"},
        "lstm": set(),
    }
