"""Export to ONNX: the same outputs, integers that stay integers, the same bytes, errors that name their reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256

import onnx
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from compress_export import Onnx
from compress_export.runtime import optimized_operators
from compress_export.verification import disagreement
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.errors import ArtifactError, ModelError
from tests.support import NETS, DictNet, digits, make

decomposed = torch.ops.quantized_decomposed


class Integers(nn.Module):
    """Two convolutions with int8 weights and int32 biases, on activations in uint8 with zero point 0."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for index in (0, 1):
            weight = torch.randint(-127, 128, (16, 16, 3, 3), dtype=torch.int8, generator=generator)
            scale = torch.rand(16, generator=generator) * 1e-3 + 1e-4
            bias = torch.randint(-900, 900, (16,), dtype=torch.int32, generator=generator)
            self.register_buffer(f"weight{index}", weight)
            self.register_buffer(f"scale{index}", scale)
            self.register_buffer(f"bias{index}", bias)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / 255
        for index in (0, 1):
            x = through_uint8(x, scale)
            scales = getattr(self, f"scale{index}")
            weight = decomposed.dequantize_per_channel(
                getattr(self, f"weight{index}"), scales, None, 0, -127, 127, torch.int8
            )
            bias = decomposed.dequantize_per_channel(
                getattr(self, f"bias{index}"), scales * scale, None, 0, -(2**31), 2**31 - 1, torch.int32
            )
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            scale = 0.01
        return through_uint8(x, scale)


def through_uint8(x: Tensor, scale: float) -> Tensor:
    integers = decomposed.quantize_per_tensor(x, scale, 0, 0, 255, torch.uint8)
    return decomposed.dequantize_per_tensor(integers, scale, 0, 0, 255, torch.uint8)


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, Tensor]
    note: str = "kept"


class Rich(nn.Module):
    """Two inputs, an optional mask, and a dataclass as output."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, one: Tensor, other: dict[str, Tensor], mask: Tensor | None = None) -> Answer:
        a, b = self.left(one), self.right(other["b"]) - other["a"]
        return Answer(a + b if mask is None else (a + b) * mask, (a, b))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 16)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Chance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


class Object(nn.Module):
    def forward(self, x: Tensor) -> object:
        return object()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each network of the tests, exported once."""
    found = {}
    image = digits().train.take(torch.arange(2))["image"]
    for name in NETS:
        model, folder = make(name), tmp_path_factory.mktemp(name)
        Onnx().export(model, folder, ((image,), {}))
        found[name] = model.eval(), folder
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_file_computes_what_the_network_computes_at_any_batch(exported, name, rows):
    model, folder = exported[name]
    image = digits().test.take(torch.arange(rows))["image"]
    with torch.no_grad():
        torch.testing.assert_close(Onnx().load(folder, threads=1)(image), model(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(Onnx().load(folder, threads=2)(image=image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_the_file_carries_weights_and_hardly_anything_else(exported, name):
    model, folder = exported[name]
    proto = onnx.load(folder / "model.onnx")
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert (folder / "model.onnx").stat().st_size < 4 * sum(p.numel() for p in model.parameters()) + 6_000
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert not proto.graph.value_info
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    output = [size.dim_param or size.dim_value for size in proto.graph.output[0].type.tensor_type.shape.dim]
    assert output == ["batch", 10]


def test_weights_keep_their_names(exported):
    _, folder = exported["conv"]
    names = {tensor.name for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    assert {"stem.weight", "blocks.1.skip.0.weight", "head.bias"} <= names


class Namesake(nn.Module):
    """A network whose parameters are called like its input, its output and an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.output, self.add, self.scale = (
            nn.Parameter(torch.rand(size) + 0.5) for size in (8, 10, 10, 10)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        logits = (self.head((image + self.image).flatten(1)) + self.add) * self.output
        return {"scale": logits * self.scale}


def test_a_weight_that_has_the_name_of_something_else_keeps_its_place(tmp_path):
    torch.manual_seed(0)
    model, image = Namesake().eval(), torch.rand(3, 1, 8, 8)
    Onnx().export(model, tmp_path, ((image,), {}))
    names = {tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert {"network.image", "network.add", "network.scale", "output", "head.weight"} <= names
    found = Onnx().load(tmp_path, 1)(image)["scale"]
    assert torch.allclose(found, model(image)["scale"], atol=1e-5)


def test_the_network_keeps_its_modes_and_weights(tmp_path):
    model = make("conv").train()
    model.blocks.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Onnx().export(model, tmp_path, ((torch.rand(2, 1, 8, 8),), {}))
    assert model.training and model.stem.training and not model.blocks.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_process_writes_the_same_bytes(exported, tmp_path):
    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom compress_export import Onnx\n"
        "from tests.support import digits, make\n"
        "image = digits().train.take(torch.arange(2))['image']\n"
        "Onnx().export(make('conv'), Path(sys.argv[1]), ((image,), {}))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == found.stderr == ""  # nor do the exporters chatter
    _, folder = exported["conv"]
    one, other = (sha256((place / "model.onnx").read_bytes()).hexdigest() for place in (folder, tmp_path))
    assert one == other


def test_a_dictionary_goes_in_and_comes_out(tmp_path):
    model = DictNet().eval()
    Onnx().export(model, tmp_path, (({"image": torch.rand(2, 1, 8, 8)},), {}))
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["logits"]
    image = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        wanted = model({"image": image})["logits"]
    torch.testing.assert_close(Onnx().load(tmp_path, 1)({"image": image})["logits"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_several_inputs_an_optional_one_and_a_dataclass_pass_through(tmp_path, masked):
    model = Rich()

    def example(rows):
        generator = torch.Generator().manual_seed(rows)
        one, a, b = (torch.rand(rows, size, generator=generator) for size in (4, 3, 5))
        return (one,), {"mask": torch.ones(rows, 3) / 2 if masked else None, "other": {"b": b, "a": a}}

    Onnx().export(model, tmp_path, example(2))
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert {value.name for value in graph.input} == {"a", "b", "one"} | ({"mask"} if masked else set())
    (one,), keywords = example(7)
    with torch.no_grad():
        wanted = model(one, **keywords)
    found = Onnx().load(tmp_path, 1)(one, keywords["other"], keywords["mask"])
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found["hidden"], wanted.hidden)
    assert found.note == "kept"


def test_other_arguments_than_those_of_the_example_are_refused(tmp_path):
    Onnx().export(Rich(), tmp_path, ((torch.rand(2, 4), {"a": torch.rand(2, 3), "b": torch.rand(2, 5)}), {}))
    call = Onnx().load(tmp_path, 1)
    with pytest.raises(ModelError, match="exported for the arguments"):
        call(torch.rand(2, 4), {"a": torch.rand(2, 3), "b": torch.rand(2, 5)}, torch.ones(2, 3))
    with pytest.raises(ModelError, match="onnxruntime cannot run it"):
        call(torch.rand(2, 5), {"a": torch.rand(2, 3), "b": torch.rand(2, 5)})


def test_integers_stay_integers_in_the_file_and_in_the_runtime(tmp_path):
    model = Integers()
    Onnx().export(model, tmp_path, ((torch.rand(2, 16, 8, 8),), {}))
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["weight0"] == kinds["weight1"] == onnx.TensorProto.INT8
    assert kinds["bias0"] == kinds["bias1"] == onnx.TensorProto.INT32
    assert Counter(node.op_type for node in graph.node)["QuantizeLinear"] == 3
    found = optimized_operators(tmp_path / "model.onnx")
    assert found["QLinearConv"] == 2
    assert found["Conv"] == found["Relu"] == 0
    image = torch.rand(3, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    error = Onnx().load(tmp_path, 1)(image) - model(image)
    assert error.abs().max() <= 0.01 + 1e-6  # one step of the output's grid
    assert (error.abs() < 1e-6).float().mean() > 0.99
    assert model(image).std() > 0.05


def test_a_float_network_runs_no_operator_in_integers(exported):
    _, folder = exported["conv"]
    found = optimized_operators(folder / "model.onnx")
    assert found["Conv"] == 6
    assert not any(name.startswith("QLinear") for name in found)


@pytest.mark.parametrize("opset", [18, 23])
def test_other_versions_of_the_operators_can_be_had(tmp_path, opset):
    model = make("conv")
    Onnx(opset=opset).export(model, tmp_path, ((torch.rand(2, 1, 8, 8),), {}))
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset


def test_a_version_that_is_too_old_is_refused():
    with pytest.raises(ValidationError):
        Onnx(opset=17)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (FixedBatch(), "one size of the batch only"),
        (Branch(), "cannot trace the network"),
        (Chance(), "computes something else"),
        (Unknown(), "svd"),
        (Object(), "the output holds an object of type object"),
        (nn.Linear(5, 2), "does not run on its example"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_exported_says_why_in_one_line(tmp_path, capfd, model, says):
    with pytest.raises(ModelError) as error:
        Onnx().export(model, tmp_path, ((torch.rand(2, 4, 4),), {}))
    assert says in error.value.what
    assert "\n" not in error.value.what
    assert error.value.mend
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise", "foreign"])
def test_a_damaged_file_is_named(exported, tmp_path, damage):
    content = (exported["mlp"][1] / "model.onnx").read_bytes()
    if damage == "foreign":
        proto = onnx.load_from_string(content)
        del proto.metadata_props[:]
        content = proto.SerializeToString()
    damaged = {"empty": b"", "cut": content[:-500], "noise": b"no model at all"}.get(damage, content)
    if damage != "missing":
        (tmp_path / "model.onnx").write_bytes(damaged)
    with pytest.raises(ArtifactError) as error:
        Onnx().load(tmp_path, 1)
    assert error.value.where.endswith("model.onnx")
    assert "\n" not in error.value.what


def test_disagreement_is_relative_and_never_small_for_another_shape_or_no_number():
    wanted = torch.tensor([3.0, 4.0])
    assert disagreement(wanted * 1.1, wanted) == pytest.approx(0.1)
    assert disagreement(torch.tensor([3.0, float("nan")]), wanted) == float("inf")
    assert disagreement(torch.tensor([3.0]), wanted) == float("inf")
    assert disagreement(torch.tensor([1, 2]), torch.tensor([1, 3])) == 0.5
    assert disagreement(torch.tensor([float("-inf"), 4.0]), torch.tensor([float("-inf"), 4.0])) == 0.0
