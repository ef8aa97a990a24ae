"""The mathematics of quantization: grids, rounding, straight-through gradients, folding."""

from __future__ import annotations

import pytest
import torch
from compress_quantize.affine import (
    asymmetric_grid,
    dequantize,
    fake_quantize,
    fake_quantize_weight,
    per_channel,
    quantize,
    symmetric_scale,
)
from compress_quantize.finishing import normalization_of
from compress_quantize.folding import Integers, Normalization, fold, with_integer_bias
from compress_quantize.layers import QuantizedConv2d, TrainingConv2d, freeze, integers_of, make_trainable
from compress_quantize.observers import ActivationQuantizer, Quantizer
from compress_quantize.observing import value_range
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

from tests.elsewhere import elsewhere

SEEDS = st.integers(0, 2**31)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_weight_scale_is_the_largest_magnitude_over_127():
    weight = torch.tensor([[1.0, -2.54], [0.0, 0.0], [0.127, 0.1]])
    assert torch.allclose(symmetric_scale(weight), torch.tensor([0.02, 1.0, 0.001]))


def test_a_channel_too_small_for_a_scale_is_a_channel_of_zeros():
    weight = torch.tensor([[1e-39, -1e-40, 0.0], [2e-38, 0.0, 0.0], [0.5, -1.0, 0.25]], requires_grad=True)
    assert torch.equal(symmetric_scale(weight), torch.tensor([1.0, 1.0, 1 / 127]))
    fake = fake_quantize_weight(weight)
    fake.sum().backward()
    assert not fake[:2].any()
    assert torch.isfinite(fake).all()
    assert torch.isfinite(weight.grad).all()


def test_the_grid_of_a_known_range():
    scale, zero_point = asymmetric_grid(torch.tensor(-1.0), torch.tensor(1.55))
    assert float(scale) == pytest.approx(0.01)
    assert zero_point == 100
    x = torch.tensor([-1.0, 0.0, 0.004, 0.006, 1.55, 9.0, -9.0])
    assert quantize(x, scale, zero_point, 0, 255).tolist() == [0, 100, 100, 101, 255, 255, 0]


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 3.0, 0), (1.0, 3.0, 0), (-3.0, -1.0, 255), (0.0, 0.0, 0)])
def test_a_range_is_widened_to_hold_zero_and_after_a_relu_the_zero_point_is_0(low, high, expected):
    scale, zero_point = asymmetric_grid(torch.tensor(low), torch.tensor(high))
    assert zero_point == expected
    assert scale > 0


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, spread=st.floats(1e-4, 1e4), shift=st.floats(-3, 3))
def test_a_value_in_range_moves_by_half_a_step_at_most_and_zero_not_at_all(seed, spread, shift):
    x = (normal(200, seed=seed) + shift) * spread
    scale, zero_point = asymmetric_grid(*value_range(x))
    back = dequantize(quantize(x, scale, zero_point, 0, 255), scale, zero_point)
    assert (x - back).abs().max() <= scale * 0.5001 + 1e-6 * spread
    assert dequantize(quantize(torch.zeros(1), scale, zero_point, 0, 255), scale, zero_point) == 0


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, spread=st.floats(1e-4, 1e4))
def test_quantizing_a_quantized_weight_again_gives_the_same_integers(seed, spread):
    weight = normal(5, 7, seed=seed) * spread
    scale = per_channel(symmetric_scale(weight), 2)
    integers = quantize(weight, scale, 0, -127, 127)
    again = dequantize(integers, scale, 0)
    assert (weight - again).abs().max() <= scale.max() * 0.5001
    assert torch.equal(quantize(again, per_channel(symmetric_scale(again), 2), 0, -127, 127), integers)


def test_grids_agree_with_torch_ao():
    x, weight = normal(50), normal(6, 4, seed=1)
    theirs = MinMaxObserver(dtype=torch.quint8)
    theirs(x)
    scale, zero_point = asymmetric_grid(*value_range(x))
    their_scale, their_zero = theirs.calculate_qparams()
    assert torch.allclose(scale, their_scale)
    assert zero_point == their_zero
    channels = PerChannelMinMaxObserver(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    channels(weight)
    # torch takes 127.5 steps per side, [-128, 127]; the symmetric grid has 127
    assert torch.allclose(symmetric_scale(weight), channels.calculate_qparams()[0] * 127.5 / 127)


def test_fake_quantization_agrees_with_torch_forward_and_backward():
    x = (normal(300) * 2).requires_grad_()
    mine = fake_quantize(x, torch.tensor(0.015), 90, 0, 255)
    mine.pow(2).sum().backward()
    gradient, x.grad = x.grad, None
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.015, 90, 0, 255)
    theirs.pow(2).sum().backward()
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.allclose(gradient, x.grad, atol=1e-5)
    assert (gradient == 0).any()


def test_every_weight_lies_inside_its_grid_and_passes_its_gradient():
    weight = normal(8, 3, 3, 3).requires_grad_()
    fake_quantize_weight(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_a_percentile_leaves_out_outliers():
    x = torch.cat([torch.linspace(-1, 1, 1999), torch.tensor([1000.0])])
    assert value_range(x)[1] == 1000
    low, high = value_range(x, 99.9)
    assert -1 <= low < -0.99
    assert 0.99 < high <= 1


def test_an_observer_follows_batches_slowly_and_calibrates_on_all_of_them():
    observer = ActivationQuantizer().train()
    observer(torch.tensor([0.0, 1.0]))
    observer(torch.tensor([-1.0, 2.0]))
    assert float(observer.high) == pytest.approx(1.05)
    assert float(observer.low) == pytest.approx(-0.05)
    observer.restart()
    for batch in ([0.0, 4.0], [-2.0, 1.0]):
        observer(torch.tensor(batch))
    assert (float(observer.low), float(observer.high)) == (-2.0, 4.0)


def test_a_quantizer_gives_what_the_formula_gives():
    x = normal(100) * 3
    mine = Quantizer(0.02, 128)(x)
    assert torch.allclose(mine, dequantize(quantize(x, torch.tensor(0.02), 128, 0, 255), torch.tensor(0.02), 128))
    assert torch.allclose(mine, torch.fake_quantize_per_tensor_affine(x, 0.02, 128, 0, 255))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_folding_a_batch_norm_is_exact(seed):
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(3, 6, 3).double(), nn.BatchNorm2d(6).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data.normal_()
    norm.running_var.uniform_(0.1, 3)
    scale = symmetric_scale(conv.weight)
    integers = quantize(conv.weight.detach(), per_channel(scale, 4), 0, -127, 127)
    conv.weight.data = dequantize(integers, per_channel(scale, 4), 0)
    found = fold(
        Integers(integers, scale, conv.bias.detach()),
        Normalization(norm.running_mean, norm.running_var, norm.weight.detach(), norm.bias.detach(), norm.eps),
    )
    assert torch.equal(found.weight.abs(), integers.abs())
    assert found.weight.abs().max() == 127
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    folded = nn.functional.conv2d(x, found.weight * per_channel(found.scale, 4), found.bias)
    assert torch.allclose(folded, norm(conv(x)), atol=1e-9)


def test_a_bias_lies_on_the_grid_of_the_products():
    layer = Integers(torch.tensor([[127.0], [3.0]]), torch.tensor([0.5, 0.25]), torch.tensor([10.01, -2.0]))
    found, scale = with_integer_bias(layer, torch.tensor(0.01))
    assert torch.equal(scale, torch.tensor([0.01]) * layer.scale)
    assert found.bias.tolist() == [2002, -800]
    assert torch.equal(found.weight, layer.weight)


def test_a_channel_that_is_nothing_beside_its_bias_keeps_its_bias():
    layer = Integers(torch.tensor([[127.0], [127.0]]), torch.tensor([1e-20, 0.0]), torch.tensor([1.5, -2.0]))
    found, scale = with_integer_bias(layer, torch.tensor(0.01))
    assert torch.allclose((found.bias * scale).float(), layer.bias)
    assert found.bias.abs().max() <= 2**30 * 1.01
    assert not found.weight.any()


@pytest.mark.parametrize(
    "options", [{}, {"groups": 2, "bias": False}, {"stride": 2, "padding": "valid"}, {"dilation": 2}]
)
def test_a_kept_convolution_computes_what_its_training_layer_computes(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **options)
    make_trainable(layer, source="elsewhere", norm=None)
    assert type(layer) is TrainingConv2d
    kept = freeze(layer, torch.tensor(0.01), None)
    assert isinstance(kept, QuantizedConv2d)
    assert kept.weight.dtype == torch.int8
    x = normal(2, 4, 9, 9)
    assert torch.allclose(kept(x), layer(x), atol=1e-3 if layer.bias is not None else 1e-5)
    opened = kept.reopened({})
    assert type(opened) is nn.Conv2d
    assert torch.allclose(opened(x), kept(x), atol=1e-5)


def test_integers_are_computed_on_the_processor_wherever_the_layer_is():
    layer = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    make_trainable(layer[0], source="elsewhere", norm="1")
    with elsewhere(layer):
        norm = normalization_of(layer[1])
        found, bias_scale = integers_of(layer[0], torch.tensor(0.01), norm)
    assert layer[0].weight.device.type == "cuda"
    assert {tensor.device.type for tensor in (found.weight, found.scale, found.bias, bias_scale)} == {"cpu"}
