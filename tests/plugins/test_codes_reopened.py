"""Networks of codes become real again, and count as the real weights that they hold."""

from __future__ import annotations

import copy

import pytest
import torch
from compress_codes import Codebook, PowerOfTwo, Ternary, WeightOnly
from compress_prune import Prune
from compress_quantize import Dequantize, Quantize
from compress_tune import Tune
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.masks import masked_tensors
from compress_core.measure import counts
from compress_core.testing import factory_of
from tests.plugins.test_codes import Tied, coded_tensors, images
from tests.support import make, make_run

EVERY = [WeightOnly(bits=4), WeightOnly(bits=8), Codebook(clusters=16), Ternary(), PowerOfTwo(bits=4)]
FOUR_BITS = [WeightOnly(bits=4), Codebook(clusters=16), Quantize(bits=4, outer_bits=4)]


def name_of(technique):
    return "-".join([technique.name, *(f"{value}" for value in technique.model_dump(exclude_unset=True).values())])


def outputs(model):
    with torch.no_grad():
        return model.eval()(images())


def counted(model):
    found = counts(model, ((images(2),), {}))
    return found.parameters, found.nonzero


@pytest.mark.parametrize("net", ["conv", "lstm", "transformer"])
@pytest.mark.parametrize("technique", EVERY, ids=name_of)
def test_coded_layers_of_another_plugin_become_real_and_give_the_same_numbers(technique, net):
    model = make(net)
    small = apply_techniques(model, [technique], make_run())
    held = len(coded_tensors(small))
    assert held
    notes = []
    opened = apply_techniques(small, [Dequantize()], make_run(teller=notes.append))
    assert not coded_tensors(opened)
    assert not any("nothing changed" in note for note in notes)
    assert [type(module) for module in opened.modules()] == [type(module) for module in model.modules()]
    assert all(parameter.requires_grad for parameter in opened.parameters())
    torch.testing.assert_close(outputs(opened), outputs(small), rtol=1e-5, atol=1e-5)


def test_what_was_coded_trains_again_and_keeps_removed_weights_removed():
    pruned = apply_techniques(make("conv"), [Prune(amount=0.6)], make_run())
    small = apply_techniques(pruned, [WeightOnly(bits=4)], make_run())
    opened = apply_techniques(small, [Dequantize()], make_run())
    marks = masked_tensors(pruned)
    assert masked_tensors(opened) == marks
    before = copy.deepcopy(opened)
    trained = apply_techniques(opened, [Tune(epochs=1, learning_rate=5e-3)], make_run())
    for name in marks:
        removed = pruned.get_parameter(name) == 0
        assert removed.any()
        assert (trained.get_parameter(name)[removed] == 0).all()
        assert not torch.equal(trained.get_parameter(name), before.get_parameter(name))


def test_layers_with_the_same_codes_share_one_real_weight_again(tmp_path):
    model = Tied().eval()
    small = apply_techniques(model, [WeightOnly(bits=4)], make_run())
    save(small, tmp_path / "small", factory=factory_of(model))
    for network in (small, load(tmp_path / "small", factory=factory_of(model))):
        opened = apply_techniques(network, [Dequantize()], make_run())
        assert opened.table.weight is opened.out.weight
        torch.testing.assert_close(outputs(opened), outputs(small), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", ["mlp", "transformer"])
@pytest.mark.parametrize("technique", FOUR_BITS, ids=name_of)
def test_a_network_of_four_bits_counts_as_many_parameters_as_before(technique, net):
    model = make(net)
    small = apply_techniques(model, [technique], make_run())
    assert counted(small)[0] == counted(model)[0]


@pytest.mark.parametrize("technique", FOUR_BITS, ids=name_of)
def test_non_zeros_are_those_of_the_weights_that_are_meant(technique):
    pruned = apply_techniques(make("mlp"), [Prune(amount=0.6)], make_run())
    small = apply_techniques(pruned, [technique], make_run())
    opened = apply_techniques(small, [Dequantize()], make_run())
    assert counted(small) == counted(opened)
    parameters, nonzero = counted(small)
    assert parameters == counted(pruned)[0]
    assert 0.2 * parameters < nonzero <= counted(pruned)[1]


def test_codes_that_two_layers_share_are_counted_once():
    model = Tied()
    small = apply_techniques(model, [WeightOnly(bits=4)], make_run())
    assert len(coded_tensors(small)) == 3
    assert counted(small)[0] == counted(model)[0] == sum(parameter.numel() for parameter in model.parameters())


def test_a_module_says_what_its_tensors_stand_for():
    class Halves(nn.Linear):
        """Keeps a weight in one parameter as bytes, and another in a buffer."""

        def __init__(self):
            super().__init__(4, 2, bias=True)
            self.register_buffer("code", torch.zeros(1))

        def stands_for(self):
            return {"weight": torch.ones(50), "code": torch.tensor([0.0, 2.0, 3.0])}

    layer = Halves()
    nn.init.ones_(layer.bias)
    found = counts(nn.Sequential(layer, nn.ReLU()), ((torch.zeros(1, 4),), {}))
    assert (found.parameters, found.nonzero) == (50 + 3 + 2, 50 + 2 + 2)
