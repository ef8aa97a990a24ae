"""Every kind of layer: what holds integers, what computes with them, and what stays real and is named."""

from __future__ import annotations

import copy

import pytest
import torch
from compress_export import Onnx
from compress_export.runtime import optimized_operators
from compress_quantize import Dequantize, Quantize
from compress_quantize.layers import QuantizedConv2d, QuantizedConv3d, QuantizedLinear
from compress_quantize.weight_only import WEIGHT_ONLY, HeldLayer, hold, real, rounded
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from tests.plugins.test_quantize import Epochs
from tests.support import Transformer, make, make_run


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Volumes(nn.Module):
    """Convolutions over three axes with BatchNorm and a mean."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4)
        self.second, self.pool = nn.Conv3d(4, 4, 3, padding=1, groups=2), nn.MaxPool3d((1, 2, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        x = self.pool(torch.relu(self.norm(self.first(image.unsqueeze(1)))))
        return self.head(torch.relu(self.second(x)).flatten(1))


class Depthwise(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)),
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
        )

    def forward(self, image):
        return self.layers(image)


class Upwards(nn.Module):
    """A convolution and two transposed ones, with groups and without."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=2)
        self.row, self.head = nn.ConvTranspose1d(8, 4, 3, padding=1, bias=False), nn.Linear(288, 10)

    def forward(self, image):
        image = self.up(torch.relu(self.down(image)))
        return self.head(torch.cat([image.flatten(1), self.row(image[:, 0]).flatten(1)], 1))


class Words(nn.Module):
    """Rows of pixels as words: an embedding, a GRU and a head."""

    def __init__(self):
        super().__init__()
        self.table, self.gru = nn.Embedding(20, 12, padding_idx=0), nn.GRU(12, 10, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 10)

    def forward(self, image):
        words = (image.flatten(1) * 16).long()
        return self.head(self.gru(self.table(words[:, ::4]))[0].mean(1))


CASES = {
    "volumes": (Volumes, {QuantizedConv3d: 2, QuantizedLinear: 1}),
    "depthwise": (Depthwise, {QuantizedConv2d: 3, QuantizedLinear: 1}),
    "upwards": (Upwards, {QuantizedConv2d: 1, QuantizedLinear: 1, HeldLayer: 2}),
    "words": (Words, {QuantizedLinear: 1, HeldLayer: 2}),
    "attention": (Transformer, {QuantizedLinear: 14}),
}


def built(name):
    torch.manual_seed(0)
    model = CASES[name][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.weight.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_layer_holds_integers_and_survives_the_artifact(name, tmp_path):
    model, run = built(name), make_run()
    small = apply_techniques(model, [Quantize()], run)
    for kind, count in CASES[name][1].items():
        assert sum(isinstance(module, kind) for module in small.modules()) == count
    reals = [path for path, tensor in small.named_parameters() if tensor.ndim >= 2 and tensor.dtype != torch.int8]
    assert not reals
    image = run.example[0][0]
    with torch.no_grad():
        wanted, given = model(image), small(image)
    assert torch.dist(wanted, given) < 0.05 * wanted.norm()
    factory = f"{CASES[name][0].__module__}:{CASES[name][0].__name__}"
    save(small, tmp_path / "model", factory=factory)
    assert torch.equal(load(tmp_path / "model", factory=factory)(image), given)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_layer_becomes_real_again_with_the_same_integers(name):
    run = make_run()
    small = apply_techniques(built(name), [Quantize()], run)
    opened = apply_techniques(small, [Dequantize()], run)
    norms = nn.BatchNorm2d | nn.BatchNorm3d
    kinds = [[type(module) for module in net.modules() if not any(module.children())] for net in (built(name), opened)]
    folded = {nn.BatchNorm2d, nn.BatchNorm3d, nn.Identity}
    assert [kind for kind in kinds[1] if kind not in folded] == [kind for kind in kinds[0] if kind not in folded]
    assert not any(isinstance(module, norms | HeldLayer) for module in opened.modules())
    again = apply_techniques(opened, [Quantize()], run)
    one, other = (
        {path: tensor for path, tensor in net.state_dict().items() if tensor.dtype == torch.int8}
        for net in (small, again)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[path]) for path, tensor in one.items())


@pytest.mark.parametrize(
    ("name", "integer", "real"),
    [
        ("depthwise", {"QLinearConv": 3, "QGemm": 1}, {}),
        ("volumes", {"QLinearConv": 2, "QGemm": 1}, {}),
        ("upwards", {"QLinearConv": 1, "QGemm": 1}, {"ConvTranspose": 2}),
        ("words", {"QGemm": 1}, {"GRU": 1}),
        ("attention", {"MatMulIntegerToFloat": 13, "QGemm": 1}, {"Softmax": 2, "MatMul": 2, "FusedMatMul": 2}),
    ],
)
def test_onnxruntime_computes_with_the_integers_where_it_has_a_kernel(name, integer, real, tmp_path):
    run = make_run()
    small = apply_techniques(built(name), [Quantize()], run)
    Onnx().export(small, tmp_path, run.example)
    operators = optimized_operators(tmp_path / "model.onnx")
    assert {kind: operators[kind] for kind in integer | real} == integer | real
    assert not {"Conv", "Gemm", "FusedConv", "FusedGemm"} & set(operators)
    image = run.splits.test.take(torch.arange(20))["image"]
    runs = Onnx().load(tmp_path, 1)
    off = (runs(image) - small(image)).abs().amax(1)
    assert (off > 1e-4).float().mean() < 0.2, "only where a value lies half way between two integers"
    assert off.max() < 0.1


@pytest.mark.parametrize("axis", [0, 1])
def test_held_weights_are_half_a_step_off_at_most_and_each_slice_reaches_127(axis):
    weight = normal(4, 6, 3, seed=2) * torch.logspace(-2, 2, 6)[:, None]
    integers, scale = rounded(weight, axis)
    spread = scale.reshape([-1 if at == axis else 1 for at in range(3)])
    assert integers.dtype == torch.int8
    assert scale.shape == (weight.shape[axis],)
    assert ((real(integers, scale, axis) - weight).abs() <= 0.5001 * spread).all()
    assert (integers.abs().movedim(axis, 0).flatten(1).amax(1) == 127).all()


def test_only_the_read_rows_of_a_table_become_real_and_the_padding_stays_zero():
    table = hold(nn.Embedding(50, 8, padding_idx=0))
    rows = table(torch.tensor([[0, 7], [49, 7]]))
    assert torch.equal(rows, table.real_weight()[torch.tensor([[0, 7], [49, 7]])])
    assert not rows[0, 0].any()


@pytest.mark.parametrize("kind", WEIGHT_ONLY)
def test_moving_and_copying_a_held_layer_keeps_its_integers(kind):
    shapes = {nn.Embedding: (5, 4), nn.ConvTranspose1d: (4, 2, 3), nn.ConvTranspose2d: (4, 2, 3)}
    held = hold(kind.REAL(*shapes.get(kind.REAL, (4, 3, 2))))
    assert all(
        torch.equal(tensor, held.state_dict()[name]) for name, tensor in copy.deepcopy(held).state_dict().items()
    )
    assert {str(tensor.dtype) for name, tensor in held.state_dict().items() if name in held.held()} == {"torch.int8"}
    assert held.held()


def test_held_layers_train_in_real_numbers_and_become_integers_at_the_end():
    run = make_run()
    small = apply_techniques(make("lstm"), [Quantize(), Epochs(epochs=2)], run)
    assert isinstance(small.get_submodule("lstm"), HeldLayer)
    assert run.evaluate(small).value > 0.25


def test_a_table_that_is_also_a_head_stays_real_and_is_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head, self.last = nn.Embedding(17, 8), nn.Linear(8, 17, bias=False), nn.Linear(17, 10)
            self.head.weight = self.table.weight

        def forward(self, image):
            return self.last(self.head(self.table((image.flatten(1) * 16).long()).mean(1)))

    said: list[str] = []
    small = apply_techniques(Tied(), [Quantize()], make_run(teller=said.append))
    assert "quantize: left real: table, head (its weight is shared with another module)" in said
    assert small.get_submodule("table").weight is small.get_submodule("head").weight


def test_a_module_that_nobody_knows_stays_real_and_is_named():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(normal(64, 64))

        def forward(self, x):
            return x @ self.matrix

    said: list[str] = []
    model = nn.Sequential(nn.Flatten(), Scaled(), nn.ReLU(), nn.Linear(64, 10), nn.Bilinear(10, 10, 10))
    model = nn.Sequential(*[*model][:4])
    small = apply_techniques(model, [Quantize()], make_run(teller=said.append))
    assert "quantize: left real: 1 (Scaled has no integer form)" in said
    assert small[1].matrix.dtype == torch.float32


def test_weights_that_are_not_finite_are_refused_by_name():
    model = make("lstm")
    model.lstm.weight_hh_l0.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="lstm"):
        apply_techniques(model, [Quantize(skip=("head",))], make_run())


def test_layers_in_float64_stay_real_and_are_named():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10).double()

        def forward(self, image):
            return self.layer(image.flatten(1).double())

    said: list[str] = []
    model = apply_techniques(Doubled(), [Quantize()], make_run(teller=said.append))
    assert type(model.layer) is nn.Linear
    assert "quantize: left real: layer (it computes in float64, and what integers stand for is float32)" in said
