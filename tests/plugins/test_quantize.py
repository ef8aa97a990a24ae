"""Quantization of whole networks: after training, while training, beside pruning, and back."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
import torch_pruning as tp
from compress_clip import Clip
from compress_quantize import Dequantize, Quantize
from compress_quantize.converting import quantizers
from compress_quantize.layers import KEPT, QuantizedLinear
from compress_quantize.observers import ActivationQuantizer, Quantizer
from pydantic import ValidationError
from safetensors import safe_open
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.data import batches
from compress_core.errors import ModelError
from compress_core.masks import masked_tensors
from compress_core.measure import quality
from compress_core.order import ordered
from compress_core.parts import Change, TrainingTechnique
from compress_core.plan import TrainingPlan
from tests.support import NETS, Classification, ConvNet, DictNet, digits, make, make_run


class Epochs(TrainingTechnique):
    """Trains, and nothing else."""

    name = "test-epochs"
    epochs: int = 2
    rate: float = 1e-2

    @property
    def changes(self) -> frozenset[Change]:
        return frozenset({Change.TRAINING})

    @property
    def brings_epochs(self) -> bool:
        return True

    def plan(self, plan, run):
        return replace(plan, epochs=self.epochs, optimizer=lambda groups: torch.optim.Adam(groups, lr=self.rate))


class HalveChannels(TrainingTechnique):
    """Removes half of the channels in `finish`, as a pruning technique does."""

    name = "test-halve"

    @property
    def changes(self) -> frozenset[Change]:
        return frozenset({Change.ARCHITECTURE})

    def finish(self, model, state, run):
        model.eval()
        pruner = tp.pruner.BasePruner(
            model,
            run.example[0],
            importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=0.5,
            ignored_layers=[model.get_submodule("head")],
        )
        pruner.step()
        return model


@lru_cache
def trained(name):
    return apply_techniques(make(name), [Epochs(epochs={"conv": 6}.get(name, 3))], make_run())


def accuracy(model, run):
    return quality(model, batches(run.splits.test, 450), run.task).value


def integers(model):
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.int8}


@pytest.mark.parametrize("name", NETS)
def test_every_network_keeps_its_accuracy_and_holds_integers(name):
    run = make_run()
    model = trained(name)
    small = apply_techniques(model, [Quantize()], run)
    assert accuracy(small, run) >= accuracy(model, run) - 0.01
    layers = [module for module in small.modules() if isinstance(module, KEPT)]
    assert len(layers) == {"mlp": 3, "conv": 7, "transformer": 14, "lstm": 1}[name]
    assert all(module.weight.dtype == torch.int8 and module.bias.dtype == torch.int32 for module in layers)
    assert not any(isinstance(module, (nn.BatchNorm2d, ActivationQuantizer)) for module in small.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == (name == "conv")


@pytest.mark.parametrize("name", NETS)
def test_every_network_survives_the_artifact_bit_for_bit(name, tmp_path):
    factory = f"tests.support:{NETS[name].__name__}"
    run = make_run()
    small = apply_techniques(make(name), [Quantize()], run)
    for folder in ("one", "two"):
        save(small, tmp_path / folder, factory=factory)
    loaded = load(tmp_path / "one", factory=factory)
    image = run.example[0][0]
    assert torch.equal(loaded(image), small(image))
    for file in ("manifest.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    with safe_open(tmp_path / "one" / "model.safetensors", framework="pt") as file:
        formats = {key: file.get_slice(key).get_dtype() for key in list(file.keys())}
    assert formats["head.weight" if name != "mlp" else "layers.5.weight"] == "I8"
    assert formats["head.bias" if name != "mlp" else "layers.5.bias"] == "I32"
    assert not any("zero_point" in key for key in formats)


def test_the_weights_of_a_small_network_take_a_quarter_of_their_bytes(tmp_path):
    run = make_run()
    model = make("mlp")
    save(model, tmp_path / "real", factory="tests.support:MLP")
    save(apply_techniques(model, [Quantize()], run), tmp_path / "small", factory="tests.support:MLP")
    loaded = [load(tmp_path / kind, factory="tests.support:MLP") for kind in ("real", "small")]
    real, small = (sum(layer.weight.nbytes for layer in model.layers if hasattr(layer, "weight")) for model in loaded)
    assert real == 4 * small


def test_after_a_relu_the_zero_point_is_0():
    small = apply_techniques(trained("conv"), [Quantize()], make_run())
    found = {path: module.zero_point for path, module in small.named_modules() if isinstance(module, Quantizer)}
    assert all(zero == 0 for path, zero in found.items() if "bn2" not in path and "skip" not in path)
    assert any(found.values())


def test_the_input_network_stays_as_it_is():
    model = trained("conv")
    before = deepcopy(model.state_dict())
    apply_techniques(model, [Quantize()], make_run())
    assert type(model) is ConvNet
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_with_rounding_is_better_than_rounding_a_narrow_range_afterwards():
    run = make_run()
    small = apply_techniques(trained("conv"), [Quantize(), Epochs(epochs=2, rate=1e-3)], run)
    alone = apply_techniques(trained("conv"), [Quantize()], run)
    assert accuracy(small, run) >= accuracy(alone, run) - 0.005
    assert accuracy(small, run) >= 0.95


def test_the_training_network_predicts_what_the_integers_compute():
    run = make_run()
    small = apply_techniques(trained("conv"), [Quantize(), Epochs(epochs=1, rate=1e-3)], run)
    technique = Quantize()
    model = technique.prepare(deepcopy(trained("conv")), run)
    technique.after_step(model, None, 1.0, run)
    for batch in run.calibration():
        run.forward(model.train(), batch)
    model.eval()
    image = next(iter(run.validation()))["image"]
    fake = model(image)
    kept = technique.finish(model, None, run)(image)
    assert (fake - kept).abs().max() < 0.05 * fake.abs().max()
    assert (fake.argmax(1) == kept.argmax(1)).float().mean() > 0.99
    assert small(image).shape == fake.shape


def test_activations_are_rounded_only_after_the_delay():
    technique, run = Quantize(delay=0.5), make_run()
    model = technique.prepare(make("mlp"), run)
    technique.after_step(model, None, 0.4, run)
    assert not any(quantizer.active for quantizer in quantizers(model).values())
    technique.after_step(model, None, 0.5, run)
    assert all(quantizer.active for quantizer in quantizers(model).values())
    assert technique.plan(Epochs().plan(TrainingPlan(select_from=0.2), run), run).select_from == 0.5


def test_a_percentile_holds_while_training_too():
    image = digits().train.column("image")
    wide, narrow = (
        [module.scale for module in small.modules() if isinstance(module, Quantizer)]
        for small in (
            apply_techniques(
                trained("mlp"), [Quantize(observer="percentile", percentile=share), Epochs(epochs=1)], make_run()
            )
            for share in (100.0, 90.0)
        )
    )
    assert wide[0] == pytest.approx(float(image.max()) / 255, rel=0.01)
    assert narrow[0] == pytest.approx(float(image.quantile(0.9)) / 255, rel=0.05)
    assert all(one > other for one, other in zip(wide, narrow, strict=True))


@pytest.mark.parametrize("epochs", [0, 2])
def test_channels_are_pruned_and_weights_quantized_in_one_step(epochs, tmp_path):
    run = make_run()
    techniques = [HalveChannels(), Quantize(), *([Epochs(epochs=epochs)] if epochs else [])]
    assert [technique.name for technique in ordered(techniques)][:2] == ["test-halve", "quantize"]
    small = apply_techniques(trained("conv"), techniques, run)
    assert small.get_submodule("stem").weight.shape == (8, 1, 3, 3)
    assert small.get_submodule("blocks.1.conv2").weight.shape == (16, 16, 3, 3)
    assert len(integers(small)) == 7
    save(small, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    image = run.example[0][0]
    assert torch.equal(loaded(image), small(image))
    # the same channels cut first and quantized afterwards give the same ranges
    if not epochs:
        pruned = apply_techniques(trained("conv"), [HalveChannels()], run)
        apart = apply_techniques(pruned, [Quantize()], run)
        assert torch.equal(apart(image), small(image))


@pytest.mark.parametrize("name", NETS)
def test_integers_become_real_numbers_and_the_same_integers_again(name, tmp_path):
    run = make_run()
    small = apply_techniques(trained(name), [Quantize()], run)
    opened = apply_techniques(small, [Dequantize()], run)
    assert not integers(opened)
    assert not any(isinstance(module, (Quantizer, *KEPT)) for module in opened.modules())
    again = apply_techniques(opened, [Quantize()], run)
    assert integers(again).keys() == integers(small).keys()
    assert all(torch.equal(tensor, integers(small)[path]) for path, tensor in integers(again).items())
    edges = [sum(isinstance(module, Quantizer) for module in network.modules()) for network in (small, again)]
    assert edges[0] == edges[1]
    learned = apply_techniques(opened, [Epochs(epochs=1)], run)
    assert accuracy(learned, run) > 0.5
    factory = f"tests.support:{NETS[name].__name__}"
    save(learned, tmp_path / "model", factory=factory)
    assert torch.equal(load(tmp_path / "model", factory=factory)(run.example[0][0]), learned(run.example[0][0]))


def test_clipped_weights_are_zero_as_integers_and_stay_marked():
    run = make_run()
    clipped = apply_techniques(trained("mlp"), [Clip(share=0.5)], run)
    small = apply_techniques(clipped, [Quantize()], run)
    opened = apply_techniques(small, [Dequantize()], run)
    assert masked_tensors(small) == masked_tensors(opened) == masked_tensors(clipped) != []
    for name in masked_tensors(clipped):
        zeros = clipped.get_parameter(name) == 0
        assert (small.get_parameter(name)[zeros] == 0).all()
        assert (opened.get_parameter(name)[zeros] == 0).all()


def test_a_network_of_dictionaries_is_quantized_like_its_inner_network():
    task = Classification(passing="dictionary")
    run = make_run(task=task)
    torch.manual_seed(0)
    model = DictNet()
    model.net.load_state_dict(trained("conv").state_dict())
    small = apply_techniques(model, [Quantize()], run)
    inner = apply_techniques(trained("conv"), [Quantize()], make_run())
    image = run.splits.test.take(torch.arange(20))["image"]
    assert torch.equal(small({"image": image})["logits"], inner(image))
    assert type(small) is DictNet


def test_the_same_seed_gives_the_same_integers():
    one, two = (apply_techniques(trained("mlp"), [Quantize(), Epochs(epochs=1)], make_run(seed=3)) for _ in range(2))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_it_says_what_stays_real_and_what_was_done():
    said: list[str] = []
    run = make_run(teller=said.append)
    apply_techniques(make("lstm"), [Quantize()], run)
    assert said == [
        "quantize: weights only, since no runtime has an integer kernel for LSTM: lstm",
        "quantize: 1 layers hold 8-bit integers and compute in real numbers",
        "quantize: 1 layers hold 8-bit integers, 0 BatchNorms are folded, 1 edges rounded",
    ]
    said.clear()
    apply_techniques(make("transformer"), [Quantize(skip=("head", "encoder.layers.*.self_attn"))], run)
    assert "left real: encoder.layers.0.self_attn, encoder.layers.1.self_attn (Multihead" in said[0]
    assert any("head (skipped)" in line for line in said)
    assert any("not traced" in line and "encoder.layers.1" in line for line in said)
    said.clear()
    apply_techniques(make("lstm"), [Quantize(skip=("*",))], run)
    apply_techniques(make("lstm"), [Dequantize()], run)
    assert sum("nothing changed" in line for line in said) == 2


def test_the_encoder_of_torch_computes_with_the_integers():
    run = make_run()
    small = apply_techniques(trained("transformer"), [Quantize()], run)
    layer = small.get_submodule("encoder.layers.0.linear1")
    assert isinstance(layer, QuantizedLinear)
    image = run.example[0][0]
    with torch.no_grad():
        before = small(image)
        layer.weight.zero_()
        assert not torch.equal(small(image), before)


class Masked(nn.Module):
    """An encoder of torch whose last three rows of every first image are padding."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.embed, self.encoder, self.head = nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 10)

    def forward(self, image):
        padding = torch.zeros(len(image), 8, dtype=torch.bool)
        padding[0, -3:] = True
        rows = self.encoder(self.embed(image.squeeze(1)), src_key_padding_mask=padding)
        return self.head(rows.masked_fill(padding[:, :, None], 0).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_a_padding_mask_computes_with_the_integers(tmp_path):
    run = make_run()
    model = Masked().eval()
    small = apply_techniques(model, [Quantize()], run)
    image = run.example[0][0]
    save(small, tmp_path / "model", factory=f"{__name__}:Masked")
    loaded = load(tmp_path / "model", factory=f"{__name__}:Masked")
    with torch.no_grad():
        assert torch.dist(small(image), model(image)) < 0.05 * model(image).norm()
        assert torch.equal(loaded(image), small(image))


def test_a_lone_layer_is_replaced():
    class Flat(Classification):
        def inputs(self, batch):
            return (batch["image"].flatten(1),), {}

    small = apply_techniques(nn.Linear(64, 10), [Quantize()], make_run(task=Flat()))
    assert isinstance(small, QuantizedLinear)
    assert isinstance(apply_techniques(small, [Dequantize()], make_run(task=Flat())), nn.Linear)


def test_values_that_are_not_finite_are_refused_where_they_pass():
    model = make("mlp")
    model.layers[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite") as error:
        apply_techniques(model, [Quantize()], make_run())
    assert "layers." in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 9},
        {"bits": 1},
        {"activation_bits": 16},
        {"percentile": 50},
        {"percentile": 101},
        {"delay": 1},
        {"width": 8},
    ],
)
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        Quantize(**fields)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ModelError, match="'haed' in `skip`"):
        apply_techniques(make("conv"), [Quantize(skip=("haed",))], make_run())


def test_a_manifest_holds_graphs_as_data_only(tmp_path):
    save(apply_techniques(make("conv"), [Quantize()], make_run()), tmp_path / "model", factory="tests.support:ConvNet")
    edits = json.loads((tmp_path / "model" / "manifest.json").read_text())["edits"]
    graphs = [edit for edit in edits if edit["op"] == "adopt"]
    assert {edit["path"] for edit in graphs} == {"", "blocks.0", "blocks.1", "blocks.1.skip"}
    assert all(edit["module"]["type"] == "compress_quantize.graph.Graph" for edit in graphs)
    assert max(len(json.dumps(edit)) for edit in graphs) < 2500
