"""PACT: rectifiers with a learned bound."""

from __future__ import annotations

import onnx
import pytest
import torch
from compress_clip import Pact
from compress_clip.bounded import LEAST, BoundedReLU, bounded
from compress_export import Onnx
from compress_prune import Prune
from compress_quantize import Quantize
from compress_zoo.convnet import ConvNet as ModuleNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.modes import unfused
from compress_core.order import check_together
from compress_core.testing import Epochs
from tests.support import digits, make, make_run


class Shared(nn.Module):
    """One rectifier in two places, one that is never reached, and one under another name too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.act = nn.ReLU()
        self.alias = self.act
        self.unused = nn.ReLU6()

    def forward(self, image):
        return self.head(self.alias(self.two(self.act(self.one(image.flatten(1))))))


class Encoder(nn.Module):
    """torch's own transformer layer, whose fused path would not call a module for the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, image):
        return self.head(self.layer(image.squeeze(1)).mean(1))


def bounds_of(model: nn.Module) -> list[float]:
    return [module.bound.item() for module in bounded(model).values()]


@settings(max_examples=50, deadline=None)
@given(alpha=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_the_rectifier_and_its_gradients_are_those_of_the_paper(alpha, seed):
    x = (3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    module = BoundedReLU(alpha)
    y = module(x)
    a = module.bound.detach()
    assert torch.allclose(y, 0.5 * (x.abs() - (x - a).abs() + a), atol=1e-6)
    y.sum().backward()
    assert torch.equal(x.grad, ((x > 0) & (x < a)).float())
    assert module.bound.grad == (x > a).sum()


def test_the_first_bound_is_the_percentile_of_what_passes():
    model = make("mlp")
    run = make_run()
    result = apply_techniques(model, [Pact(percentile=90)], run)
    passed = run.features(model, ["layers.2"])["layers.2"]
    positive = [output[output > 0] for output in passed.outputs]
    wanted = [values.kthvalue(round(0.9 * len(values))).values for values in positive]
    assert result.layers[2].bound.item() == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-5)
    assert 0.05 < float((torch.cat(positive) > result.layers[2].bound).float().mean()) < 0.15


def test_the_bound_is_learned_and_the_regularizer_pulls_it_down():
    run = make_run()
    free, pulled, first = (
        apply_techniques(make("mlp"), techniques, run)
        for techniques in ([Pact(l2=0.0), Epochs(epochs=3)], [Pact(l2=0.5), Epochs(epochs=3)], [Pact()])
    )
    assert bounds_of(free) != bounds_of(first)
    assert all(low < high for low, high in zip(bounds_of(pulled), bounds_of(free), strict=True))
    assert run.evaluate(pulled).value > 0.7
    assert run.features(pulled, ["layers.2"])["layers.2"].outputs[0].max() == pulled.layers[2].bound


def test_a_bound_never_falls_to_zero():
    result = apply_techniques(make("mlp"), [Pact(l2=1e4), Epochs(epochs=1, learning_rate=1.0)], make_run())
    assert all(bound >= LEAST * 0.99 for bound in bounds_of(result))


def test_one_rectifier_in_two_places_has_one_bound_and_comes_back_from_disk(tmp_path):
    said: list[str] = []
    torch.manual_seed(0)
    model = Shared()
    result = apply_techniques(model, [Pact(), Epochs()], make_run(teller=said.append, max_batches=3))
    assert result.alias is result.act
    assert isinstance(result.act, BoundedReLU)
    assert type(result.unused) is nn.ReLU6
    assert said[0] == "pact: left as they are: unused (the calibration examples do not reach them)"
    assert said[1].startswith("pact: 1 rectifier is bounded at ")
    factory = "tests.plugins.test_clip_pact:Shared"
    save(result, tmp_path / "model", factory=factory)
    loaded = load(tmp_path / "model", factory=factory)
    assert loaded.alias is loaded.act
    image = digits().validation.take(torch.arange(9))["image"]
    assert torch.equal(loaded(image), result(image))
    assert bounds_of(loaded) == bounds_of(result)


def test_a_second_time_keeps_the_bounds_that_were_learned():
    run = make_run()
    first = apply_techniques(make("mlp"), [Pact(percentile=80)], run)
    second = apply_techniques(first, [Pact(percentile=99)], run)
    assert bounds_of(second) == bounds_of(first)


@pytest.mark.parametrize("build", [Encoder, lambda: make("transformer")])
def test_a_transformer_layer_calls_its_bounded_rectifier_in_eval_mode(build, tmp_path):
    torch.manual_seed(0)
    model = build()
    result = apply_techniques(model, [Pact(percentile=50)], make_run())
    image = digits().validation.take(torch.arange(9))["image"]
    factory = f"{type(model).__module__}:{type(model).__qualname__}"
    save(result, tmp_path / "model", factory=factory)
    loaded = load(tmp_path / "model", factory=factory)
    with torch.no_grad():
        held, free = result(image), model.eval()(image)
        assert torch.equal(loaded(image), held)
        for module in bounded(result).values():
            module.bound.fill_(100.0)
        assert torch.allclose(result(image), free, atol=1e-5)
    assert not torch.allclose(held, free, atol=1e-3)


class Alternating(nn.Module):
    """Two transformer layers with one module for the activation."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation=act, batch_first=True) for _ in range(2)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(8, 10)

    def forward(self, image):
        return self.head(self.layers(image.squeeze(1)).mean(1))


def test_every_transformer_layer_that_shares_a_rectifier_calls_it_in_eval_mode(tmp_path):
    torch.manual_seed(0)
    result = apply_techniques(Alternating(), [Pact(percentile=50)], make_run())
    image = digits().validation.take(torch.arange(9))["image"]
    with torch.no_grad(), unfused():
        plain = result(image)
    with torch.no_grad():
        assert torch.allclose(result(image), plain, atol=1e-5)
        factory = "tests.plugins.test_clip_pact:Alternating"
        save(result, tmp_path / "model", factory=factory)
        assert torch.equal(load(tmp_path / "model", factory=factory)(image), result(image))


class InPlace(nn.Module):
    """The shortcut sees what the rectifier has written into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.act = nn.ReLU(inplace=True)

    def forward(self, image):
        x = self.one(image.flatten(1))
        return self.head(x + self.two(self.act(x)))


def test_a_rectifier_that_works_in_place_goes_on_so(tmp_path):
    torch.manual_seed(0)
    model, run = InPlace(), make_run(max_batches=3)
    result = apply_techniques(model, [Pact(percentile=100)], run)
    image = next(run.calibration(9))["image"]
    assert torch.allclose(result(image), model.eval()(image), atol=1e-5)
    trained = apply_techniques(result, [Pact(l2=0.1), Epochs()], run)
    assert bounds_of(trained) != bounds_of(result)
    factory = "tests.plugins.test_clip_pact:InPlace"
    save(trained, tmp_path / "model", factory=factory)
    loaded = load(tmp_path / "model", factory=factory)
    assert torch.equal(loaded(image), trained(image))
    Onnx().export(trained, tmp_path, ((torch.zeros(2, 1, 8, 8),), {}))
    assert torch.allclose(Onnx().load(tmp_path, 1)(image), trained(image), atol=1e-5)


def test_if_all_rectifiers_are_skipped_nothing_changes_and_it_says_so():
    said: list[str] = []
    result = apply_techniques(make("mlp"), [Pact(skip=("layers",))], make_run(teller=said.append))
    assert not bounded(result)
    assert said == ["pact: no module such as nn.ReLU is called by the network and not in `skip`: nothing changed"]


def test_functional_rectifiers_cannot_be_seen_and_that_is_said():
    said: list[str] = []
    model = make("conv")
    result = apply_techniques(model, [Pact()], make_run(teller=said.append))
    assert said == ["pact: no module such as nn.ReLU is called by the network and not in `skip`: nothing changed"]
    assert all(torch.equal(one, other) for one, other in zip(result.parameters(), model.parameters(), strict=True))


def test_skipped_rectifiers_stay():
    result = apply_techniques(make("mlp"), [Pact(skip=("layers.2",))], make_run())
    assert list(bounded(result)) == ["layers.4"]
    assert type(result.layers[2]) is nn.ReLU


def test_the_bound_is_a_clip_in_the_exported_file(tmp_path):
    torch.manual_seed(0)
    result = apply_techniques(ModuleNet((8, 8)), [Pact(percentile=95), Epochs()], make_run(max_batches=3))
    Onnx().export(result, tmp_path, ((torch.zeros(2, 1, 8, 8),), {}))
    (file,) = tmp_path.glob("*.onnx")
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("Clip") == len(bounded(result)) > 1
    assert not {"Relu", "Min", "Max"} & set(kinds)
    image = digits().validation.take(torch.arange(9))["image"]
    assert torch.allclose(Onnx().load(tmp_path, 1)(image), result(image), atol=1e-5)


def test_integers_of_activations_lie_within_the_learned_bound(tmp_path):
    techniques = [Quantize(), Pact(percentile=99, l2=0.01), Epochs(epochs=4)]
    check_together(techniques, teacher=False)
    run = make_run()
    result = apply_techniques(make("mlp"), techniques, run)
    assert run.evaluate(result).value > 0.85
    bounds = {index: result.layers[index].bound.item() for index in (2, 4)}
    for index in (2, 4):
        reader = result.layers[index + 1].input_quantizer
        assert reader.zero_point == 0
        assert 0.5 * bounds[index] < 255 * reader.scale <= 1.01 * bounds[index]
    save(result, tmp_path / "model", factory="tests.support:MLP")
    loaded = load(tmp_path / "model", factory="tests.support:MLP")
    image = digits().validation.take(torch.arange(9))["image"]
    assert torch.equal(loaded(image), result(image))
    Onnx().export(result, tmp_path, ((torch.zeros(2, 1, 8, 8),), {}))
    assert (Onnx().load(tmp_path, 1)(image).argmax(1) == result(image).argmax(1)).float().mean() > 0.8


def test_channels_of_a_bounded_network_can_be_pruned():
    bound = apply_techniques(make("mlp"), [Pact()], make_run())
    pruned = apply_techniques(bound, [Prune(amount=0.5, granularity="channel"), Pact(), Epochs()], make_run())
    assert pruned.layers[1].out_features == 16
    assert len(bounded(pruned)) == 2
