"""Containers as data, and where the quantizers go."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from compress_quantize import Quantize
from compress_quantize.converting import make_quantizable, quantizers
from compress_quantize.graph import Graph, become_graph
from compress_quantize.observers import Quantizer
from compress_quantize.tracing import Untraceable, trace
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ArtifactError
from tests.support import ConvNet, DictNet, digits, make, make_run


def graphs(model):
    return {path for path, module in model.named_modules() if isinstance(module, Graph)}


def prepared(model, *inputs, skip=()):
    report = make_quantizable(model, lambda: model(*inputs), set(skip))
    return model, report


IMAGE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def as_graphs(model):
    for module in list(model.modules()):
        if module._modules:
            become_graph(module, trace(module))
    return model


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_computes_what_its_container_computes(training):
    model, other = make("conv").train(training), as_graphs(make("conv")).train(training)
    assert type(other) is Graph
    assert torch.equal(model(IMAGE), other(IMAGE))
    assert dict(other.named_parameters()).keys() == dict(model.named_parameters()).keys()


def test_dictionaries_go_in_and_come_out():
    torch.manual_seed(0)
    model = DictNet().eval()
    expected = model({"image": IMAGE})["logits"]
    become_graph(model, trace(model))
    assert torch.equal(model({"image": IMAGE})["logits"], expected)
    assert torch.equal(model(inputs={"image": IMAGE})["logits"], expected)
    with pytest.raises(TypeError, match="misses its argument 'inputs'"):
        model()


def test_a_graph_with_its_own_parameters_survives_the_artifact(tmp_path):
    model = as_graphs(ConvNet()).eval()
    save(model, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    assert graphs(loaded) == graphs(model) == {"", "blocks", "blocks.0", "blocks.1", "blocks.1.skip"}
    assert torch.equal(loaded(IMAGE), model(IMAGE))


class Strange(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = 0.5
        self.step = forward

    def forward(self, x):
        return self.step(self, x)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: self.layer(x) if x.sum() > 0 else x, "cannot trace"),
        (lambda self, x: self.layer(x) * 2 if self.training else self.layer(x), "differs while training"),
        (lambda self, x: torch.fft.fft(self.layer(x)), "calls fft_fft"),
        (lambda self, x: self.layer(x).cumsum(0), "the method 'cumsum'"),
        (lambda self, x: self.layer(x) + torch.ones(4), "constant"),
        (lambda self, x: self.layer(x).data, "reads 'data'"),
    ],
)
def test_what_is_not_data_is_left_as_it_is(forward, reason):
    container = Strange(forward)
    before = set(vars(container))
    with pytest.raises(Untraceable, match=reason):
        trace(container)
    assert set(vars(container)) == before
    assert container.training


def test_dropout_follows_the_mode_of_the_graph():
    container = Strange(lambda self, x: F.dropout(self.layer(x), self.dropout, self.training))
    become_graph(container, trace(container))
    x = torch.ones(64, 4)
    assert (container(x) == 0).float().mean() > 0.3
    assert not (container.eval()(x) == 0).any()


def test_a_manifest_cannot_call_what_is_not_allowed():
    evil = Graph([["f", "call_function", "system", ["true"], {}], ["output", "output", "output", [0], {}]])
    with pytest.raises(ValueError, match="may not call 'system'"):
        evil()
    evil = Graph(
        [["x", "placeholder", "x", [], {}], ["g", "call_function", "getattr", [{"node": "x"}, "__class__"], {}]]
    )
    with pytest.raises(ValueError, match="may not read '__class__'"):
        evil(1)
    with pytest.raises(ValueError, match=r"may not read 'forward\.__func__'"):
        Graph([["g", "get_attr", "forward.__func__", [], {}]])()


def test_a_residual_network_has_one_quantizer_per_edge():
    model, report = prepared(make("conv").eval(), IMAGE)
    assert set(quantizers(model)) == {
        "stem.input_quantizer",
        "relu_quantizer",
        "blocks.0.conv2.input_quantizer",
        "blocks.0.bn2_quantizer",
        "blocks.0.relu_1_quantizer",
        "blocks.1.conv2.input_quantizer",
        "blocks.1.skip._1_quantizer",
        "blocks.1.bn2_quantizer",
        "blocks.1.relu_1_quantizer",
        "head.input_quantizer",
    }
    sources = {path: model.get_submodule(path).source for path in ("blocks.0.conv1", "blocks.1.conv1", "head")}
    assert sources == {
        "blocks.0.conv1": "relu_quantizer",
        "blocks.1.conv1": "blocks.0.relu_1_quantizer",
        "head": None,
    }
    assert {path: module.norm for path, module in model.named_modules() if hasattr(module, "norm")} == {
        "stem": "bn",
        "blocks.0.conv1": "blocks.0.bn1",
        "blocks.0.conv2": "blocks.0.bn2",
        "blocks.1.conv1": "blocks.1.bn1",
        "blocks.1.conv2": "blocks.1.bn2",
        "blocks.1.skip.0": "blocks.1.skip.1",
        "head": None,
    }
    assert graphs(model) == {"", "blocks.0", "blocks.1", "blocks.1.skip"}
    assert report.left == report.untraced == {}


def test_a_plain_row_of_layers_needs_no_graph():
    model, _ = prepared(make("mlp").eval(), IMAGE)
    assert graphs(model) == set()
    assert Counter(path.rpartition(".")[2] for path in quantizers(model)) == {"input_quantizer": 3}


def test_a_skipped_block_keeps_its_sums():
    model = make("conv").eval()
    skip = [path for path, _ in model.named_modules() if path.startswith("blocks")]
    model, report = prepared(model, IMAGE, skip=skip)
    assert set(report.left.values()) == {"skipped"}
    assert not any(path.startswith("blocks") for path in quantizers(model))
    assert graphs(model) == {""}


def test_a_layer_that_is_called_twice_has_one_quantizer_of_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.again(self.again(self.first(x)))

    model, _ = prepared(Twice(), torch.randn(3, 4))
    assert set(quantizers(model)) == {"first.input_quantizer", "again.input_quantizer"}


def test_shared_weights_and_odd_padding_stay_real_with_a_reason():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.conv = nn.Embedding(5, 4), nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")
            self.middle, self.head, self.idle = nn.Linear(4, 4), nn.Linear(4, 5, bias=False), nn.Linear(2, 2)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.middle(self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)))

    model, report = prepared(Tied(), torch.zeros(2, 3, dtype=torch.int64))
    assert report.left == {
        "embed": "its weight is shared with another module",
        "conv": "it pads with 'circular'",
        "head": "its weight is shared with another module",
        "idle": "the example does not reach it",
    }
    assert set(quantizers(model)) == {"middle.input_quantizer"}


def test_a_pool_between_two_convolutions_stays_on_their_grid():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 3)
    )
    model, _ = prepared(model, IMAGE)
    assert set(quantizers(model)) == {"0.input_quantizer", "3.input_quantizer", "5.input_quantizer"}


class Shortcut(nn.Module):
    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))


class Padded(nn.Module):
    """A block whose shortcut has no weights, as in the residual networks for CIFAR."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.shortcut, self.head = Shortcut(), nn.Linear(8, 10)

    def forward(self, image):
        x = F.relu(self.stem(image))
        return self.head(F.relu(self.conv(x) + self.shortcut(x)).mean((2, 3)))


def test_a_shortcut_of_slices_and_zeros_is_rounded_and_survives(tmp_path):
    small = apply_techniques(Padded(), [Quantize()], make_run())
    assert {path for path, module in small.named_modules() if isinstance(module, Quantizer)} == {
        "stem.input_quantizer",
        "relu_quantizer",
        "conv_quantizer",
        "shortcut.pad_quantizer",
        "relu_1_quantizer",
        "head.input_quantizer",
    }
    save(small, tmp_path / "model", factory=f"{__name__}:Padded")
    assert torch.equal(load(tmp_path / "model", factory=f"{__name__}:Padded")(IMAGE), small(IMAGE))


class Rows(nn.Module):
    """Normalizes the rows of an image, which are axis 1 of what its linear layer gives, or the layer's outputs."""

    def __init__(self, width, over_rows=True):
        super().__init__()
        self.over_rows = over_rows
        self.linear, self.norm = nn.Linear(8 if over_rows else 64, width), nn.BatchNorm1d(8 if over_rows else width)
        self.relu, self.head = nn.ReLU(), nn.Linear(8 * width if over_rows else width, 10)
        for tensor in (self.norm.running_mean, self.norm.weight, self.norm.bias):
            nn.init.normal_(tensor, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(self.norm.running_var, 0.1, 5.0, generator=torch.Generator().manual_seed(1))

    def forward(self, image):
        x = image.squeeze(1) if self.over_rows else image.flatten(1)
        return self.head(self.relu(self.norm(self.linear(x))).flatten(1))


@pytest.mark.parametrize(("width", "over_rows", "folds"), [(8, True, 0), (16, True, 0), (16, False, 1)])
def test_a_norm_over_another_axis_than_the_outputs_of_its_layer_is_not_folded(width, over_rows, folds):
    said: list[str] = []
    model = Rows(width, over_rows).eval()
    small = apply_techniques(model, [Quantize()], make_run(teller=said.append))
    image = digits().validation.column("image")
    expected = model(image)
    assert torch.dist(small(image), expected) < 0.03 * expected.norm()
    assert isinstance(small.norm, nn.Identity) == bool(folds)
    assert f"{folds} BatchNorms are folded" in said[-1]


class Private(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.abs(), self.bias)


def test_a_layer_with_a_forward_of_its_own_stays_real():
    model, report = prepared(nn.Sequential(nn.Flatten(), Private(64, 8), nn.Linear(8, 3)), IMAGE)
    assert report.left == {"1": "Private has no integer form"}
    assert report.untraced == {}
    assert set(quantizers(model)) == {"2.input_quantizer"}


def test_what_only_data_can_say_is_checked_on_load(tmp_path):
    model = as_graphs(ConvNet()).eval()
    model.nodes[1][4] = {"odd": torch.ones(1)}
    with pytest.raises(ArtifactError):
        save(model, tmp_path / "model", factory="tests.support:ConvNet")
