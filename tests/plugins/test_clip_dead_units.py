"""Clipping: dead units go with all that depends on them, and the network computes what it computed."""

from __future__ import annotations

import onnx
import pytest
import torch
from compress_clip import Clip
from compress_clip.constants import fold_constant
from compress_clip.dead_units import without_dead_units
from compress_export import Onnx
from compress_zoo.resnet import CifarResNet
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.masks import masked_tensors
from compress_core.testing import Epochs
from tests.support import MLP, Block, ConvNet, Recurrent, Transformer, digits, make, make_run


def outputs(model: nn.Module) -> torch.Tensor:
    run = make_run()
    with torch.no_grad():
        return run.forward(model.eval(), digits().validation.take(torch.arange(100)))


def clipped(model: nn.Module, **fields: object) -> tuple[nn.Module, list[str]]:
    said: list[str] = []
    result = apply_techniques(model, [Clip(threshold=0.0, **fields)], make_run(teller=said.append))
    return result, said


@torch.no_grad()
def starve(layer: nn.Module, units: list[int], bias: float | None = None) -> None:
    """Take all incoming weights of some units away."""
    layer.weight[units] = 0
    if bias is not None and layer.bias is not None:
        layer.bias[units] = bias


@torch.no_grad()
def ignore(layer: nn.Module, units: list[int]) -> None:
    """Take all weights away that read some units."""
    layer.weight[:, units] = 0


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """Biases and norms as after a training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


class Padded(nn.Module):
    """Two convolutions and a linear layer, the second convolution with a padding to choose."""

    def __init__(self, padding: int = 0, mode: str = "zeros", groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=padding, padding_mode=mode, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.head = nn.Linear(8 * (4 + 2 * padding) ** 2, 10)

    def forward(self, image):
        return self.head(self.act(self.norm(self.conv2(self.act(self.conv1(image))))).flatten(1))


class Depthwise(nn.Module):
    """An inverted bottleneck without a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(1, 12, 1)
        self.spread = nn.Conv2d(12, 12, 3, groups=12)
        self.project = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, image):
        x = F.relu(self.spread(F.relu(self.expand(image))))
        return self.head(self.project(x).mean((2, 3)))


def test_a_bias_takes_in_what_a_constant_input_adds():
    generator = torch.Generator().manual_seed(0)
    for layer in (nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.Conv1d(6, 9, 2)):
        shape = {nn.Linear: (5, 6), nn.Conv2d: (5, 6, 7, 7), nn.Conv1d: (5, 6, 7)}[type(layer)]
        x, constant = torch.randn(shape, generator=generator), torch.randn(6, generator=generator)
        moved = x + (constant if x.ndim == 2 else constant.reshape(6, *[1] * (x.ndim - 2)))
        wanted = layer(moved)
        fold_constant(layer, constant)
        assert torch.allclose(layer(x), wanted, atol=1e-5)


def test_units_that_nothing_feeds_or_reads_go_and_leave_their_constant():
    model = make("mlp")
    starve(model.layers[1], [0, 1], bias=0.7)
    starve(model.layers[1], [2], bias=-0.7)  # says 0 behind the relu
    ignore(model.layers[3], [3])
    before = outputs(model)
    result, said = clipped(model)
    assert result.layers[1].weight.shape == (28, 64)
    assert result.layers[3].weight.shape == (32, 28)
    assert torch.allclose(outputs(result), before, atol=1e-5)
    folded = model.layers[3].bias + 0.7 * (model.layers[3].weight[:, :2]).sum(1)
    assert torch.allclose(result.layers[3].bias, folded, atol=1e-6)
    assert said == [
        "clip: no weight went; 224 are zero now",
        "clip: 4 dead units went (layers.1 32 to 28); 2 of them left a constant in the next bias",
    ]


def test_a_dead_unit_takes_the_units_along_that_lived_by_it():
    model = make("mlp")
    with torch.no_grad():
        starve(model.layers[1], [0], bias=0.5)
        model.layers[3].weight[5] = 0
        model.layers[3].weight[5, 0] = 1.0  # lives by unit 0 only
        model.layers[3].weight[:, 7] = 0
        model.layers[3].weight[6, 7] = 1.0  # unit 7 lives for unit 6 only
        ignore(model.layers[5], [6])
    before = outputs(model)
    result, _ = clipped(model)
    assert (result.layers[1].out_features, result.layers[3].out_features) == (30, 30)
    assert torch.allclose(outputs(result), before, atol=1e-5)


def test_a_residual_network_loses_units_inside_its_blocks_and_whole_channels_of_the_stream():
    model = shaken(make("conv"))
    with torch.no_grad():
        starve(model.blocks[0].conv1, [1, 2])
        model.blocks[0].bn1.bias[[1, 2]] = -5.0  # the relu makes 0 of it: padding does no harm
        ignore(model.blocks[1].conv2, [4])
        starve(model.blocks[1].conv2, [9, 10])
        starve(model.blocks[1].skip[0], [9])  # 10 is still fed by the shortcut
    before = outputs(model)
    result, said = clipped(model)
    assert result.blocks[0].conv1.out_channels == result.blocks[0].bn1.num_features == 14
    assert result.blocks[1].conv1.out_channels == 31
    assert result.head.in_features == result.blocks[1].skip[0].out_channels == 31
    assert torch.allclose(outputs(result), before, atol=1e-4)
    assert "4 dead units went" in said[1]


def test_a_constant_that_a_padding_would_interrupt_stays_and_is_named():
    model = shaken(make("conv"))
    starve(model.blocks[0].conv1, [1])
    with torch.no_grad():
        model.blocks[0].bn1.bias[1] = 50.0
    result, said = clipped(model)
    assert result.blocks[0].conv1.out_channels == 16
    assert said[-1] == (
        "clip: dead units stay in blocks.0.conv1: their constant is not 0, and a convolution pads it with zeros"
    )


@pytest.mark.parametrize(("padding", "mode", "left"), [(0, "zeros", 6), (1, "zeros", 8), (1, "replicate", 6)])
def test_a_convolution_gets_a_bias_where_its_padding_allows(padding, mode, left):
    torch.manual_seed(0)
    model = Padded(padding, mode)
    starve(model.conv1, [0, 5], bias=0.4)
    before = outputs(model)
    result, _ = clipped(model)
    assert result.conv1.out_channels == result.conv2.in_channels == left
    assert (result.conv2.bias is not None) == (left == 6)
    assert torch.allclose(outputs(result), before, atol=1e-5)


def test_the_blocks_of_a_grouped_convolution_lose_the_same_number():
    torch.manual_seed(0)
    model = Padded(groups=2)
    starve(model.conv1, [0, 1, 4], bias=0.4)  # two of the first block, one of the second
    before = outputs(model)
    result, _ = clipped(model)
    assert result.conv1.out_channels == 6
    assert torch.allclose(outputs(result), before, atol=1e-5)


def test_a_depthwise_convolution_passes_a_constant_on():
    torch.manual_seed(0)
    model = Depthwise()
    starve(model.expand, [3, 4], bias=0.3)
    before = outputs(model)
    result, _ = clipped(model)
    assert result.spread.groups == 10
    assert result.project.in_channels == 10
    assert torch.allclose(outputs(result), before, atol=1e-5)


def test_a_channel_goes_through_shortcuts_that_pad_and_subsample():
    torch.manual_seed(0)
    model = shaken(CifarResNet(1, inputs=1))
    writers = [(model.conv1, model.bn1, 5)]
    for stage, channel in ((model.layer1, 5), (model.layer2, 8 + 5), (model.layer3, 16 + 8 + 5)):
        writers.append((stage[0].conv2, stage[0].bn2, channel))
    with torch.no_grad():
        for convolution, norm, channel in writers:
            convolution.weight[channel] = 0
            for tensor in (norm.running_mean, norm.bias):
                tensor[channel] = 0
        model.linear.weight[:, 3] = 0  # a channel of the last stage that begins there
    before = outputs(model)
    result, _ = clipped(model)
    widths = [getattr(result, name)[0].conv2.out_channels for name in ("layer1", "layer2", "layer3")]
    assert widths == [15, 31, 62]
    assert torch.allclose(outputs(result), before, atol=1e-4)


class Dense(nn.Module):
    """Two convolutions side by side, concatenated, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 6, 3)
        self.three = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5 * 36, 10)

    def forward(self, image):
        return self.head(torch.relu(self.three(torch.cat([self.one(image), self.two(image)], 1))).flatten(1))


def test_concatenated_and_flattened_units_go_from_where_they_are_read():
    torch.manual_seed(0)
    model = Dense()
    starve(model.two, [1, 2], bias=0.3)
    with torch.no_grad():
        model.three.weight[:, 0] = 0
        model.head.weight.view(10, 5, 36)[:, 4] = 0
    before = outputs(model)
    result, said = clipped(model)
    sizes = (result.one.out_channels, result.two.out_channels, result.three.weight.shape[:2], result.head.in_features)
    assert sizes == (3, 4, (4, 7), 4 * 36)
    assert said[-1].endswith("; 2 of them left a constant in the next bias")
    assert torch.allclose(outputs(result), before, atol=1e-5)


def test_one_unit_of_a_dead_layer_stays():
    model = make("mlp")
    starve(model.layers[3], list(range(32)), bias=0.2)
    before = outputs(model)
    result, _ = clipped(model)
    assert result.layers[3].out_features == 1
    assert torch.allclose(outputs(result), before, atol=1e-5)


def test_attention_and_lstm_keep_their_dead_units_and_are_named():
    lstm = make("lstm")
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            getattr(lstm.lstm, name).view(4, 16, -1)[:, 3] = 0
    result, said = clipped(lstm)
    assert result.lstm.hidden_size == 16
    assert said[-1] == "clip: dead units stay in lstm: LSTM works across channels"
    transformer = make("transformer")
    layer = transformer.encoder.layers[0]
    with torch.no_grad():
        layer.self_attn.in_proj_weight[2] = 0
        starve(layer.linear1, [0, 1, 2], bias=0.3)
    before = outputs(transformer)
    result, said = clipped(transformer)
    assert result.encoder.layers[0].linear1.out_features == 29
    assert "encoder.layers.0.self_attn" in said[-1]
    assert torch.allclose(outputs(result), before, atol=1e-5)


def test_a_skipped_layer_keeps_its_shape_and_so_does_what_it_reads():
    model = make("mlp")
    starve(model.layers[1], [0], bias=0.5)
    result, said = clipped(model, skip=("layers.3",))
    assert result.layers[1].out_features == 32
    assert torch.equal(result.layers[3].bias, model.layers[3].bias)
    assert said[-1] == "clip: dead units stay in layers.1: `skip` names layers.3"


def test_dead_units_stay_if_nothing_shall_be_adjusted():
    model = make("mlp")
    starve(model.layers[1], [0])
    result, _ = clipped(model, adjust=False)
    assert result.layers[1].out_features == 32


class Told(nn.Module):
    """A forward that says to the second layer what its input cannot show: the number of the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 12), nn.Linear(12, 10)

    def forward(self, image):
        hidden = self.one(image.flatten(1))
        return self.two(F.softmax(hidden, dim=1))


def test_units_whose_zero_still_matters_stay_and_are_named():
    torch.manual_seed(0)
    model = Told()
    starve(model.one, [0, 1], bias=0.0)
    ignore(model.two, [4])
    before = outputs(model)
    result, said = clipped(model)
    assert result.one.out_features == 12
    assert torch.equal(outputs(result), before)
    assert "dead units stay in one: the network computes something else" in " ".join(said)


def test_a_smaller_network_comes_back_from_disk_and_trains_on_with_its_zeros(tmp_path):
    model = shaken(make("conv"))
    starve(model.blocks[0].conv1, [1, 2])
    with torch.no_grad():
        model.blocks[0].bn1.bias[[1, 2]] = -5.0
    result = apply_techniques(model, [Clip(share=0.5)], make_run())
    assert result.blocks[0].conv1.out_channels == 14
    save(result, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    assert torch.equal(outputs(loaded), outputs(result))
    trained = apply_techniques(loaded, [Epochs()], make_run(max_batches=3))
    for name in masked_tensors(loaded):
        zeros = loaded.get_parameter(name) == 0
        assert zeros.any()
        assert (trained.get_parameter(name)[zeros] == 0).all()


def test_the_exported_file_is_smaller_and_gives_the_same(tmp_path):
    model = make("mlp")
    starve(model.layers[1], list(range(16)), bias=0.3)
    sizes = {}
    for adjust in (False, True):
        result, _ = clipped(model, adjust=adjust)
        folder = tmp_path / str(adjust)
        folder.mkdir()
        Onnx().export(result, folder, ((torch.zeros(2, 1, 8, 8),), {}))
        (file,) = folder.glob("*.onnx")
        sizes[adjust] = file.stat().st_size
        weights = {tuple(entry.dims) for entry in onnx.load(file).graph.initializer}
        assert ((16, 64) in weights) == adjust
        image = digits().validation.take(torch.arange(20))["image"]
        assert torch.allclose(Onnx().load(folder, 1)(image), result(image), atol=1e-5)
    assert sizes[False] - sizes[True] > 0.9 * 4 * 16 * (64 + 32)


def test_the_network_that_comes_in_stays_as_it_is():
    model = make("mlp")
    starve(model.layers[1], [0], bias=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adjusted = without_dead_units(model, make_run())
    assert adjusted.sizes == {"layers.1": (32, 31)}
    assert adjusted.folded == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_a_network_that_loses_nearly_all_weights_computes_the_same_without_its_dead_units(name):
    model = shaken(make(name))
    run = make_run()
    zeroed, first, second = (
        apply_techniques(model, [Clip(share=0.97, scope="global", adjust=adjust)], run)
        for adjust in (False, True, True)
    )
    sizes = [sum(parameter.numel() for parameter in found.parameters()) for found in (zeroed, first)]
    assert sizes[1] < 0.8 * sizes[0]
    assert torch.allclose(outputs(first), outputs(zeroed), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def test_a_network_without_dead_units_is_not_even_traced():
    for kind in (MLP, ConvNet, Transformer, Recurrent, lambda: Block(2, 2)):
        torch.manual_seed(0)
        model = kind()
        assert without_dead_units(model, make_run()).model is model
