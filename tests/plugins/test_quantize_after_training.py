"""Quantization without training, refined: equalization, adaptive rounding, corrected biases, folding first."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from compress_quantize import Quantize, after_training
from compress_quantize.after_training import fold_norms
from compress_quantize.bias_correction import correct_biases
from compress_quantize.converting import calibrate, make_quantizable, quantizers
from compress_quantize.equalization import equalize, factors, input_ranges, output_ranges
from compress_quantize.layers import KEPT, Training
from compress_quantize.layerwise import inputs_of, mean_outputs, order_of_calls, real_copy
from compress_quantize.rounding import (
    Reconstruction,
    adaptive_integers,
    beta_at,
    logit_of,
    relaxed,
    undecided,
)
from compress_quantize.weight_grids import WeightGrid
from compress_quantize.widths import Numbers, Widths
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.data import Columns
from compress_core.errors import ModelError
from compress_core.masks import hold_zeros, masked_tensors
from tests.plugins.test_quantize import Epochs, accuracy, trained
from tests.support import make_run

SEEDS = st.integers(0, 2**31)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Separable(nn.Module):
    """A chain with a depthwise convolution, BatchNorms, pools and a flatten."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 16), nn.ReLU()),
            *(nn.Dropout(0.1), nn.Linear(16, 10)),
        )

    def forward(self, image):
        return self.layers(image)


def uneven(seed=0):
    """The same, with channels of very different ranges."""
    torch.manual_seed(seed)
    model = Separable()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(-3, 3).exp_()
            module.bias.data.normal_()
    return model.eval()


def prepared(model, numbers=None):
    run = make_run()
    make_quantizable(model, partial(model, *run.example[0]), set(), numbers or Numbers())
    forwards = [partial(run.forward, batch=batch) for batch in run.calibration(limit=3)]
    calibrate(model, [partial(forward, model) for forward in forwards])
    for quantizer in quantizers(model).values():
        quantizer.activate()
    return model.eval(), forwards


def training_layers(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, Training)}


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_folding_and_equalizing_change_no_output_and_make_ranges_equal(seed):
    model, _ = prepared(uneven(seed))
    image = make_run().example[0][0]
    wanted = real_copy(model)(image).detach()
    assert fold_norms(model) == 2
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert torch.allclose(real_copy(model)(image), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    layers = training_layers(model)
    readers = {path: layer.reader for path, layer in layers.items() if layer.reader}
    assert [*readers.values()] == [*layers][1:]
    assert equalize(layers, readers) == 4
    assert torch.allclose(real_copy(model)(image), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    for path, reader in readers.items():
        one, other = layers[path].weight, layers[reader]
        ranges = output_ranges(one), input_ranges(other.weight, len(one), getattr(other, "groups", 1))
        assert torch.allclose(*ranges, rtol=1e-2)


def test_a_channel_gets_the_geometric_mean_of_both_ranges_and_a_dead_one_stays():
    first, second = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 9.0, 2.0])
    scale = factors(first, second)
    assert scale.tolist() == pytest.approx([2.0, 1 / 3, 1.0])
    assert (first / scale)[:2].tolist() == pytest.approx((second * scale)[:2].tolist())


def test_only_layers_that_one_layer_reads_are_equalized():
    """In a residual block that is the first convolution and the second; ReLU6 and LayerNorm stand between others."""
    model, _ = prepared(deepcopy(trained("conv")))
    assert {path: layer.reader for path, layer in training_layers(model).items() if layer.reader} == {
        "blocks.0.conv1": "blocks.0.conv2",
        "blocks.1.conv1": "blocks.1.conv2",
    }
    clipped = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU6(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 10)
    )
    model, _ = prepared(clipped)
    assert not any(layer.reader for layer in training_layers(model).values())


def test_equalization_saves_a_network_with_one_step_for_all_channels():
    run = make_run()
    model = apply_techniques(Separable(), [Epochs(epochs=4)], run)
    layer, norm = model.get_submodule("layers.3"), model.get_submodule("layers.4")
    spread = torch.logspace(-2.5, 2.5, 8)
    with torch.no_grad():  # the same network, its channels scaled apart
        norm.weight.mul_(spread)
        norm.bias.mul_(spread)
        model.get_submodule("layers.7").weight.div_(spread[:, None, None])
    assert layer.groups == 8
    said: list[str] = []
    found = []
    for on in (False, True):
        technique = Quantize(granularity="tensor", equalize=on)
        found.append(accuracy(apply_techniques(model, [technique], make_run(teller=said.append)), run))
    assert "quantize: 4 pairs of layers are equalized" in said
    assert found[0] < accuracy(model, run) - 0.1
    assert found[1] > accuracy(model, run) - 0.01


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_relaxed_rounding_begins_at_the_weight_itself(seed):
    share = torch.rand(50, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(relaxed(logit_of(share)), share, atol=1e-5)
    assert torch.equal(relaxed(torch.tensor([-50.0, 50.0])), torch.tensor([0.0, 1.0]))


def test_the_term_of_undecided_weights_is_that_of_the_paper():
    share = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert float(undecided(share, 2.0)) == pytest.approx(0.75 + 1.0)
    assert [beta_at(0.0), beta_at(0.2), beta_at(0.6), beta_at(1.0)] == pytest.approx([20, 20, 11, 2])


def correlated(seed=0):
    """A layer whose inputs are alike, so that the nearest integers add up their errors."""
    weight = normal(12, 24, seed=seed)
    weight[0, :5] = 0
    read = normal(600, 1, seed=seed + 1) + 0.3 * normal(600, 24, seed=seed + 2)
    return weight, read, Reconstruction(F.linear, read, F.linear(read, weight), -1, False)


def test_adaptive_rounding_is_near_the_weight_and_far_better_than_the_nearest():
    weight, _, goal = correlated()
    scale = WeightGrid(bits=4).scale(weight)[:, None]
    found = adaptive_integers(weight, scale, 7, goal, steps=400, batch=64, seed=0)
    nearest = (weight / scale).round().clamp(-7, 7)
    assert torch.equal(found, found.round())
    assert found.abs().max() <= 7
    assert ((found * scale - weight).abs() <= scale * (1 + 1e-5)).all()
    assert not found[0, :5].any(), "a weight of zero stays zero"
    assert goal.whole_error(found * scale) < 0.6 * goal.whole_error(nearest * scale)


def test_adaptive_rounding_is_as_good_as_the_best_of_all_roundings():
    weight, read = normal(1, 8, seed=3), normal(300, 1) + 0.5 * normal(300, 8, seed=1)
    goal = Reconstruction(F.linear, read, F.linear(read, weight), -1, False)
    scale = WeightGrid(bits=3).scale(weight)[:, None]
    found = adaptive_integers(weight, scale, 3, goal, steps=500, batch=64, seed=0)
    down = (weight / scale).floor()
    choices = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    errors = [goal.whole_error((down + choice).clamp(-3, 3) * scale) for choice in choices]
    better = sum(error < goal.whole_error(found * scale) - 1e-9 for error in errors)
    assert better <= 5, f"{better} of 256 roundings are better"


def test_four_bits_lose_less_when_rounded_adaptively(tmp_path):
    run = make_run()
    model = trained("mlp")
    said: list[str] = []
    near, learned = (
        apply_techniques(
            model,
            [Quantize(bits=3, outer_bits=3, rounding=rounding, steps=300)],
            make_run(teller=said.append),
        )
        for rounding in ("nearest", "adaptive")
    )
    assert any("3 of 3 layers are rounded adaptively" in line for line in said)
    image = run.splits.validation.column("image")
    with torch.no_grad():
        errors = [float(F.mse_loss(small(image), model(image))) for small in (near, learned)]
    assert errors[1] < 0.8 * errors[0]
    assert accuracy(learned, run) >= accuracy(near, run)
    save(learned, tmp_path / "model", factory="tests.support:MLP")
    assert torch.equal(load(tmp_path / "model", factory="tests.support:MLP")(image), learned(image))
    again = apply_techniques(model, [Quantize(bits=3, outer_bits=3, rounding="adaptive", steps=300)], make_run())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in learned.state_dict().items())


def test_a_removed_weight_stays_removed_when_rounded_adaptively():
    from compress_clip import Clip

    clipped = apply_techniques(trained("mlp"), [Clip(share=0.5)], make_run())
    small = apply_techniques(clipped, [Quantize(rounding="adaptive", steps=50, correct_bias=True)], make_run())
    for name in masked_tensors(clipped):
        assert (small.get_parameter(name)[clipped.get_parameter(name) == 0] == 0).all()


def test_after_correction_the_mean_of_each_output_channel_is_the_real_one():
    model, forwards = prepared(deepcopy(trained("conv")), Numbers(widths=Widths(3, 8, 3)))
    fold_norms(model)
    real = real_copy(model)
    calls = order_of_calls(model, forwards[0])
    off = {path: mean_outputs(model, path, forwards) - mean_outputs(real, path, forwards) for path in calls}
    assert correct_biases(model, real, calls, forwards) == len(calls) == 7
    for path in calls:
        after = mean_outputs(model, path, forwards) - mean_outputs(real, path, forwards)
        assert after.abs().max() < 1e-4 < off[path].abs().max()


def test_corrected_biases_help_at_3_bits():
    run, model = make_run(), trained("conv")
    image = run.splits.validation.column("image")
    errors = []
    for on in (False, True):
        small = apply_techniques(model, [Quantize(bits=3, outer_bits=3, correct_bias=on)], run)
        with torch.no_grad():
            errors.append(float(F.mse_loss(small(image), model(image))))
    assert errors[1] < 0.8 * errors[0]


def test_inputs_are_those_behind_rounded_layers():
    model, forwards = prepared(deepcopy(trained("mlp")))
    path = [*training_layers(model)][1]
    real, rounded = (inputs_of(network, path, forwards) for network in (real_copy(model), model))
    assert real.shape == rounded.shape == (192, 32)
    assert 0 < float((real - rounded).abs().max()) < 0.1 * float(real.abs().max())
    assert len(rounded.unique()) <= 256 < len(real.unique())


def test_one_scale_for_the_whole_tensor_behind_a_folded_norm_too():
    small = apply_techniques(trained("conv"), [Quantize(granularity="tensor")], make_run())
    kept = [module for module in small.modules() if isinstance(module, KEPT)]
    assert len(kept) == 7
    assert all(len(layer.scale.unique()) == 1 for layer in kept)
    assert accuracy(small, make_run()) >= accuracy(trained("conv"), make_run()) - 0.02


def test_a_training_with_one_step_for_the_tensor_says_where_folded_norms_give_channels_their_own():
    said: list[str] = []
    run = make_run(teller=said.append, max_batches=2)
    model = apply_techniques(trained("conv"), [Quantize(granularity="tensor"), Epochs(epochs=1)], run)
    scales = [len(module.scale.unique()) for module in model.modules() if isinstance(module, KEPT)]
    assert said[-1] == (
        f"quantize: {sum(count > 1 for count in scales)} layers have a scale per channel: "
        "their BatchNorms were folded after the training"
    )
    said.clear()
    apply_techniques(trained("conv"), [Quantize(granularity="tensor")], make_run(teller=said.append))
    assert not any("scale per channel" in line for line in said)


def test_all_refinements_together_survive_the_artifact_and_say_what_they_did(tmp_path):
    said: list[str] = []
    run = make_run(teller=said.append)
    technique = Quantize(equalize=True, rounding="adaptive", steps=20, correct_bias=True, observer="mse")
    small = apply_techniques(trained("conv"), [technique], run)
    assert accuracy(small, run) >= accuracy(trained("conv"), run) - 0.01
    assert "quantize: 2 pairs of layers are equalized" in said
    assert "quantize: the biases of 7 layers are corrected" in said
    assert said[-1] == "quantize: 7 layers hold 8-bit integers, 6 BatchNorms are folded, 10 edges rounded"
    save(small, tmp_path / "model", factory="tests.support:ConvNet")
    image = run.example[0][0]
    assert torch.equal(load(tmp_path / "model", factory="tests.support:ConvNet")(image), small(image))


def test_a_network_that_trained_with_rounding_is_not_refined_after_it():
    said: list[str] = []
    apply_techniques(trained("mlp"), [Quantize(equalize=True), Epochs(epochs=1)], make_run(teller=said.append))
    assert any("has trained with rounding: not equalized" in line for line in said)


def spoiled(value):
    """A run of which one calibration picture holds a value that is not finite."""
    run = make_run()
    train = run.splits.train
    pictures = train.column("image").clone()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed))
    pictures[order[5], 0, 0, 0] = value
    columns = Columns({"image": pictures, "label": train.column("label")})
    return replace(run, splits=replace(run.splits, train=columns))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_data_that_are_not_finite_are_refused_where_they_enter_before_anything_is_fitted(value, observer, monkeypatch):
    monkeypatch.setattr(after_training, "adaptive_integers", lambda *_, **__: pytest.fail("it fits to NaN"))
    refined = Quantize(observer=observer, equalize=True, rounding="adaptive", correct_bias=True)
    with pytest.raises(ModelError, match="while it calibrates are not finite") as error:
        apply_techniques(trained("mlp"), [refined], spoiled(value))
    assert error.value.where == "layers.1.input_quantizer"


def test_a_bias_that_two_layers_share_is_corrected_for_each():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    model[3].bias = model[1].bias
    model, forwards = prepared(model, Numbers(widths=Widths(3, 8, 3)))
    real = real_copy(model)
    calls = order_of_calls(model, forwards[0])
    correct_biases(model, real, calls, forwards)
    for path in calls:
        wanted = mean_outputs(real, path, forwards)
        assert torch.allclose(mean_outputs(model, path, forwards), wanted, atol=1e-5)


def test_a_removed_bias_stays_removed_when_biases_are_corrected():
    model = deepcopy(trained("mlp"))
    with torch.no_grad():
        model.layers[1].bias[:5] = 0
    hold_zeros(model.layers[1], "bias")
    small = apply_techniques(model, [Quantize(bits=3, outer_bits=3, correct_bias=True)], make_run())
    assert (small.layers[1].bias[:5] == 0).all()
    assert (small.layers[1].bias[5:] != 0).all()
