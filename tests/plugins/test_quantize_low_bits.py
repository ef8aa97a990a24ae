"""Networks of 2 to 8 bits: trained with learned steps, joined with other techniques, stored packed, and run."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from compress_distill import Distill
from compress_export import Onnx
from compress_export.runtime import optimized_operators
from compress_prune import Prune
from compress_quantize import Dequantize, Quantize
from compress_quantize.converting import quantizers
from compress_quantize.layers import KEPT, Training
from compress_quantize.learned_step import LearnedStep
from compress_quantize.observers import Quantizer
from compress_tune import Tune
from pydantic import ValidationError
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import RecipeError
from compress_core.masks import masked_tensors
from compress_core.order import check_together
from compress_core.run import as_teacher
from tests.plugins.test_quantize import Epochs, accuracy, trained
from tests.support import NETS, digits, make, make_run


def layers_of(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, KEPT)}


def quantizers_of(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, Quantizer)}


def files(model, folder, factory="tests.support:ConvNet"):
    save(model, folder, factory=factory)
    return load(folder, factory=factory), (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("bits", "activations", "least"), [(4, 4, 0.97), (3, 8, 0.97), (2, 8, 0.95), (2, 2, 0.92)])
def test_learned_steps_keep_the_accuracy_at_few_bits(bits, activations, least, tmp_path):
    run = make_run()
    technique = Quantize(bits=bits, activation_bits=activations, learned=True)
    small = apply_techniques(trained("conv"), [technique, Epochs(epochs=2, rate=1e-3)], run)
    assert accuracy(small, run) >= least
    layers = layers_of(small)
    assert [layer.bits for layer in layers.values()] == [8, *[bits] * 5, 8]
    for layer in layers.values():
        highest = 2 ** (layer.bits - 1) - 1
        assert int(layer.integers().abs().max()) <= highest
        assert layer.weight.dtype == (torch.int8 if layer.bits == 8 else torch.uint8)
    loaded, _ = files(small, tmp_path / "model")
    image = run.example[0][0]
    assert torch.equal(loaded(image), small(image))


def test_learned_steps_are_better_than_ranges_at_two_bits():
    run = make_run()
    learned, followed = (
        accuracy(
            apply_techniques(
                trained("conv"),
                [Quantize(bits=2, activation_bits=2, learned=learned), Epochs(epochs=2, rate=1e-3)],
                run,
            ),
            run,
        )
        for learned in (True, False)
    )
    assert learned > followed + 0.02


@pytest.mark.parametrize("name", NETS)
def test_every_network_is_packed_in_the_artifact_and_comes_back_bit_for_bit(name, tmp_path):
    run, factory = make_run(), f"tests.support:{NETS[name].__name__}"
    small = apply_techniques(make(name), [Quantize(bits=4, outer_bits=4)], run)
    for layer in layers_of(small).values():
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == len(layer.scale) * -(-layer.integers()[0].numel() // 2)
    loaded, _ = files(small, tmp_path / "model", factory)
    image = run.example[0][0]
    assert torch.equal(loaded(image), small(image))


def test_the_fewer_the_bits_the_smaller_the_file(tmp_path):
    run = make_run()
    sizes = {
        bits: files(apply_techniques(trained("conv"), [Quantize(bits=bits)], run), tmp_path / str(bits))[1]
        for bits in (8, 5, 4, 2)
    }
    weights = sum(
        layer.integers().numel()
        for layer in layers_of(apply_techniques(trained("conv"), [Quantize(bits=4)], run)).values()
        if layer.bits == 4
    )
    assert sizes[8] - sizes[4] == pytest.approx(weights / 2, abs=64)
    assert sizes[8] - sizes[2] == pytest.approx(weights * 3 / 4, abs=64)
    assert abs(sizes[5] - sizes[8]) < 64


def test_operands_of_layers_are_narrow_and_sums_and_ends_are_not():
    run = make_run()
    technique = Quantize(bits=3, activation_bits=4)
    small = apply_techniques(trained("conv"), [technique], run)
    narrow = {path for path, quantizer in quantizers_of(small).items() if quantizer.bits == 4}
    wide = {path for path, quantizer in quantizers_of(small).items() if quantizer.bits == 8}
    inner = [path for path, layer in layers_of(small).items() if layer.bits == 3]
    assert narrow == {f"{path}.input_quantizer" for path in inner}
    assert {"stem.input_quantizer", "blocks.0.bn2_quantizer", "blocks.0.relu_1_quantizer"} <= wide
    image = run.example[0][0]
    values = run.features(small, sorted(narrow), [{"image": image}])
    assert all(len(features.outputs[0].unique()) <= 16 for features in values.values())
    every = Quantize(bits=3, activation_bits=8).prepare(deepcopy(trained("conv")), run)
    assert all(quantizer.observing.levels == 255 for quantizer in quantizers(every).values())


def test_onnxruntime_computes_packed_weights_and_narrow_activations_in_integers(tmp_path):
    run = make_run()
    sizes = {}
    for bits, technique in {8: Quantize(), 4: Quantize(bits=4, activation_bits=4, outer_bits=4)}.items():
        small = apply_techniques(make_wide(), [technique], run)
        folder = tmp_path / str(bits)
        Onnx().export(small, folder, run.example)
        sizes[bits] = (folder / "model.onnx").stat().st_size
        operators = optimized_operators(folder / "model.onnx")
        assert not {"Conv", "MatMul", "Gemm"} & set(operators)
        assert operators["QLinearConv"] == 3
    image = digits().test.take(torch.arange(100))["image"]
    found = Onnx().load(tmp_path / "4", threads=1)(image)
    assert (found.argmax(1) == small(image).argmax(1)).float().mean() > 0.97
    assert sizes[4] < 0.62 * sizes[8]


def make_wide():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def test_everything_joins_in_one_step(tmp_path):
    teacher = as_teacher(trained("conv"))
    said: list[str] = []
    run = make_run(teacher=teacher, teller=said.append)
    techniques = [
        Prune(amount=0.5, granularity="channel"),
        Distill(),
        Quantize(bits=4, activation_bits=4, learned=True, freeze_norms=0.8),
        Tune(epochs=6, learning_rate=3e-3),
    ]
    small = apply_techniques(trained("conv"), techniques, run)
    assert accuracy(small, run) >= 0.93
    layers = layers_of(small)
    assert layers["blocks.0.conv1"].shape[0] == 8
    assert all(len(layer.scale) == layer.shape[0] for layer in layers.values())
    assert any("4-bit" in line for line in said)
    loaded, _ = files(small, tmp_path / "model")
    image = run.example[0][0]
    assert torch.equal(loaded(image), small(image))
    Onnx().export(small, tmp_path / "onnx", run.example)


@pytest.mark.parametrize("learned", [True, False])
def test_removed_weights_are_zero_integers_after_training_together(learned):
    run = make_run()
    techniques = [Prune(amount=0.7), Quantize(bits=4, learned=learned), Epochs(epochs=2, rate=1e-3)]
    small = apply_techniques(trained("conv"), techniques, run)
    share = [float((layer.integers() == 0).float().mean()) for layer in layers_of(small).values()]
    assert min(share) >= 0.69
    assert len(masked_tensors(small)) == 7
    opened = apply_techniques(small, [Dequantize()], run)
    for path, layer in layers_of(small).items():
        assert torch.equal(opened.get_submodule(path).weight == 0, layer.integers() == 0)
    again = apply_techniques(opened, [Epochs(epochs=1)], run)
    assert all(
        ((opened.get_parameter(name) != 0) | (again.get_parameter(name) == 0)).all() for name in masked_tensors(opened)
    )
    assert accuracy(small, run) > 0.9


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_learned_steps_move_with_the_optimizer_and_do_not_decay(granularity):
    run = make_run()
    seen = {}

    class Watch(Epochs):
        def after_step(self, model, state, progress, run):
            steps = [module for module in model.modules() if isinstance(module, LearnedStep)]
            seen.setdefault("first", [step.factor.detach().clone() for step in steps])
            seen["last"] = [step.factor.detach().clone() for step in steps]
            seen["axes"] = {step.factor.ndim for step in steps}

    technique = Quantize(bits=4, learned=True, granularity=granularity)
    apply_techniques(trained("mlp"), [technique, Watch(epochs=1, rate=1e-3)], run)
    assert seen["axes"] == ({0, 1} if granularity == "channel" else {0})
    assert all((one != other).any() for one, other in zip(seen["first"], seen["last"], strict=True))


def test_frozen_norms_keep_their_statistics_and_leave_nothing_behind():
    run = make_run()
    seen = []

    class Watch(Epochs):
        def after_step(self, model, state, progress, run):
            norm = model.get_submodule("bn")
            seen.append((progress, norm.running_mean.clone(), norm.weight.detach().clone()))

    techniques = [Quantize(freeze_norms=0.5), Watch(epochs=2, rate=1e-3)]
    small = apply_techniques(trained("conv"), techniques, run)
    after = [mean for progress, mean, _ in seen if progress >= 0.5]
    before = [mean for progress, mean, _ in seen if progress < 0.5]
    assert all(torch.equal(mean, after[0]) for mean in after)
    assert not torch.equal(before[0], before[-1])
    assert not torch.equal(seen[-1][2], seen[-5][2])
    assert not any(module._forward_pre_hooks for module in small.modules())


def test_a_failed_training_takes_its_hooks_away():
    class Fails(Epochs):
        def after_step(self, model, state, progress, run):
            if progress > 0.5:
                raise RuntimeError("on purpose")

    model = deepcopy(trained("conv"))
    with pytest.raises(RuntimeError, match="on purpose"):
        make_run().train(model, [Quantize(freeze_norms=0.0), Fails()])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("fields", [{"learned": True}, {"freeze_norms": 0.5}])
def test_what_only_training_does_needs_epochs(fields):
    with pytest.raises(RecipeError, match="does nothing without training"):
        check_together([Quantize(**fields)], teacher=False)
    check_together([Quantize(**fields), Tune(epochs=1)], teacher=False)


@pytest.mark.parametrize("field", ["bits", "activation_bits", "outer_bits"])
@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_bits_that_no_runtime_computes_with_are_refused_with_those_that_can_be_had(field, bits):
    with pytest.raises(ValidationError, match=re.escape(f"of {bits} bits")) as error:
        Quantize(**{field: bits})
    assert "2 to 8" in str(error.value)
    assert "onnxruntime" in str(error.value)


def test_the_training_network_predicts_what_the_learned_integers_compute():
    run = make_run()
    technique = Quantize(bits=4, activation_bits=4, learned=True)
    model = technique.prepare(deepcopy(trained("conv")).train(), run)
    for batch in run.calibration():
        run.forward(model, batch)
    technique.after_step(model, None, 1.0, run)
    assert all(isinstance(module.learned, LearnedStep) for module in model.modules() if isinstance(module, Training))
    model.eval()
    image = next(iter(run.validation()))["image"]
    fake = model(image).detach()
    kept = technique.finish(model, None, run)(image)
    assert (fake - kept).abs().max() < 0.05 * fake.abs().max()
