"""Sorted hidden units: the network computes the same, and its packed file is smaller."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compress_pack.artifacts import packed_artifact
from compress_pack.ordering import ordered_units
from compress_pack.permute import Permute
from compress_prune import Prune
from compress_zoo import LeNet5
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.data import Columns, Splits
from compress_core.factory import build_model
from compress_core.masks import masked_tensors
from compress_core.testing import check_technique
from tests.support import make, make_run


def pruned(name: str, amount: float = 0.8) -> nn.Module:
    return apply_techniques(make(name), [Prune(amount=amount, allocation="global")], make_run())


def left(weight: torch.Tensor, axis: int) -> list[int]:
    return (weight != 0).movedim(axis, 0).flatten(1).sum(1).tolist()


def same(one: nn.Module, other: nn.Module, image: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(one.double()(image.double()), other.double()(image.double()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_network_with_sorted_units_computes_the_same(name):
    before = pruned(name)
    after = apply_techniques(before, [Permute()], make_run())
    assert not all(torch.equal(one, two) for one, two in zip(before.parameters(), after.parameters(), strict=True))
    assert same(before, after, make_run().splits.test.column("image")[:50])


def test_units_with_many_weights_come_first():
    before = pruned("mlp")
    after = apply_techniques(before, [Permute()], make_run())
    first, second, *_ = (module for module in after.modules() if isinstance(module, nn.Linear))
    counts = [one + two for one, two in zip(left(first.weight, 0), left(second.weight, 1), strict=True)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 3


def test_channels_of_a_convolution_move_with_the_features_that_a_linear_layer_reads_of_them():
    torch.manual_seed(0)
    net = LeNet5()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter[torch.rand(parameter.shape) < 0.9] = 0

    run = make_run()
    pictures = torch.randn(4, 1, 28, 28)
    split = Columns({"image": pictures, "label": torch.arange(4)})
    found, moved, stays = ordered_units(net, replace(run, splits=Splits(split, split, split)))
    assert stays == 0
    assert moved > 400
    assert same(net, found, pictures)
    by_channel = [
        one + two
        for one, two in zip(left(found.conv2.weight, 0), left(found.fc1.weight.reshape(500, 50, 16), 1), strict=True)
    ]
    assert by_channel == sorted(by_channel, reverse=True)


def test_zeros_that_are_held_move_with_their_units_and_stay_held():
    before = pruned("mlp")
    after = apply_techniques(before, [Permute()], make_run())
    assert masked_tensors(after) == masked_tensors(before)
    for one, two in zip(before.parameters(), after.parameters(), strict=True):
        assert int((one == 0).sum()) == int((two == 0).sum())


def test_a_sorted_network_packs_smaller_and_survives_its_artifact(tmp_path):
    run = make_run()
    net = build_model("compress_zoo:MLP", {"inputs": 64, "widths": [300, 100]})
    with torch.no_grad():
        torch.manual_seed(0)
        hidden = net.hidden[1]
        keep = torch.rand(300, 1) ** 4 > torch.rand(300, 64)
        hidden.weight.copy_(hidden.weight.sign() * keep + 0.0)
    sorted_net = apply_techniques(net, [Permute()], run)
    params = {"inputs": 64, "widths": [300, 100]}
    one, other = (len(packed_artifact(model, "compress_zoo:MLP", params)) for model in (net, sorted_net))
    assert other < one - 40
    save(sorted_net, tmp_path / "m", factory="compress_zoo:MLP", params=params)
    again = load(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(sorted_net.parameters(), again.parameters(), strict=True))


def test_it_keeps_the_promises_of_a_technique():
    report = check_technique(Permute(), nets=["mlp", "conv"], compose=False, export=False)
    assert not report.refused
