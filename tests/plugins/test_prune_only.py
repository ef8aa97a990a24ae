"""Modules that the user names in `only`: just these are pruned, and one that cannot be is an error."""

from __future__ import annotations

import pytest
import torch
from compress_prune import Prune

from compress_core.applying import apply_techniques
from compress_core.errors import ModelError
from compress_core.weights import weights
from tests.plugins.test_prune_channels import OptionA, seeded, widths
from tests.support import make, make_run


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_only_the_named_weights_go_and_the_amount_is_theirs(allocation):
    model = make("conv")
    pruned = apply_techniques(model, [Prune(amount=0.5, only=("blocks.1",), allocation=allocation)], make_run())
    named = [place for place in weights(pruned) if place.name.startswith("blocks.1")]
    for place in weights(pruned):
        if not place.name.startswith("blocks.1"):
            assert torch.equal(place.parameter, model.get_parameter(place.name))
    total = sum(place.parameter.numel() for place in named)
    zeros = sum(int((place.parameter == 0).sum()) for place in named)
    assert abs(zeros - total / 2) <= len(named) / 2


def test_only_the_named_channels_go_and_those_that_are_coupled_with_them():
    model, run = make("conv"), make_run()
    found = widths(apply_techniques(model, [Prune(amount=0.5, granularity="channel", only=("*.conv1",))], run))
    assert (found["blocks.0.conv1"], found["blocks.1.conv1"], found["stem"]) == (8, 16, 16)
    found = widths(apply_techniques(model, [Prune(amount=0.5, granularity="channel", only=("stem",))], run))
    assert (found["stem"], found["blocks.0.conv2"], found["blocks.0.conv1"]) == (8, 8, 16)


def test_what_is_named_in_both_stays():
    model = make("conv")
    pruned = apply_techniques(model, [Prune(amount=0.5, only=("blocks",), skip=("blocks.0",))], make_run())
    assert torch.equal(pruned.blocks[0].conv1.weight, model.blocks[0].conv1.weight)
    assert int((pruned.blocks[1].conv1.weight == 0).sum()) == 2304


@pytest.mark.parametrize(
    ("net", "fields", "says"),
    [
        ("conv", {"only": ("bn",)}, "'bn' in `only` cannot be pruned: it has no weights that can go"),
        ("conv", {"only": ("stem", "bn")}, "'bn' in `only`"),
        ("conv", {"only": ("nothing",)}, "'nothing' in `only` matches no module"),
        ("conv", {"only": ("stem",), "skip": ("stem",)}, "'stem' in `only` cannot be pruned"),
        ("conv", {"only": ("head",), "granularity": "kernel"}, "'head' in `only` cannot be pruned: it has no kernels"),
        ("conv", {"only": ("head",), "granularity": "channel"}, "'head' in `only` cannot be pruned"),
        ("lstm", {"only": ("lstm",), "granularity": "channel"}, "'lstm' .*LSTM works across channels"),
        ("transformer", {"only": ("*.linear1", "*.norm1"), "granularity": "channel"}, r"'\*.norm1' in `only`"),
        ("transformer", {"only": ("head",), "granularity": "head"}, "'head' in `only` cannot be pruned"),
        ("conv", {"only": ("stem",), "granularity": "depth"}, "'stem' in `only` cannot be pruned"),
    ],
)
def test_a_named_module_that_cannot_be_pruned_is_an_error_that_names_it(net, fields, says):
    with pytest.raises(ModelError, match=says):
        apply_techniques(make(net), [Prune(amount=0.5, **fields)], make_run())


def test_a_named_layer_whose_channels_are_padded_is_refused_with_the_reason():
    technique = Prune(amount=0.5, granularity="channel", only=("blocks.0.conv1", "stem"))
    with pytest.raises(ModelError, match=r"'stem' in `only` cannot be pruned: .*something else") as error:
        apply_techniques(seeded(OptionA), [technique], make_run())
    assert error.value.mend == "take it out of `only`; what can be pruned: blocks.0.conv1"


def test_of_a_pattern_only_what_fits_the_inputs_has_to_be_named():
    with pytest.raises(ModelError, match="'stem' in `only` cannot be pruned: 1 inputs are no multiple of 4"):
        apply_techniques(make("conv"), [Prune(pattern="2:4", only=("stem",))], make_run())
    pruned = apply_techniques(make("conv"), [Prune(pattern="2:4", only=("head",))], make_run())
    assert int((pruned.head.weight == 0).sum()) == 160


def test_heads_and_blocks_are_named_too():
    run = make_run()
    model = make("transformer")
    small = apply_techniques(model, [Prune(amount=0.5, granularity="head", only=("encoder.layers.0.self_attn",))], run)
    sizes = [sum(p.numel() for p in layer.self_attn.parameters()) for layer in small.encoder.layers]
    assert sizes[0] < sizes[1]
    deep = apply_techniques(make("conv"), [Prune(amount=0.9, granularity="depth", only=("blocks.0",))], run)
    assert sum(p.numel() for p in deep.parameters()) == sum(p.numel() for p in make("conv").parameters()) - 4672
