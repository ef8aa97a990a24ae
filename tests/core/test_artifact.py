"""A saved network comes back the same, to the bit, or is refused with the module and the mend."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from datetime import date
from math import inf, nan
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils import parametrizations, prune

from compress_core.applying import apply_techniques
from compress_core.artifact import TENSORS, load, save
from compress_core.errors import ArtifactError
from compress_core.factory import build_model
from compress_core.files import MANIFEST, replacing, write_manifest, write_tensors
from compress_core.masks import hold_zeros, masked_tensors
from tests.core import nets
from tests.core.fakes import Learn
from tests.support import make, make_run

FACTORIES = {
    "mlp": "tests.support:MLP",
    "conv": "tests.support:ConvNet",
    "transformer": "tests.support:Transformer",
    "lstm": "tests.support:Recurrent",
}
KEEPER = "tests.core.nets:Keeper"
NESTED, TIED, ATTRIBUTE = "tests.core.nets:Nested", "tests.core.nets:Tied", "tests.core.nets:Attribute"


def round_trip(model: nn.Module, folder: Path, factory: str, **fields) -> nn.Module:
    """Save, load and save again: what comes back has the same tensors, and the same bytes again."""
    save(model, folder / "one", factory=factory, **fields)
    loaded = load(folder / "one", factory=factory)
    save(loaded, folder / "two", factory=factory, **fields)
    for name in (MANIFEST, TENSORS):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    assert not any(module.training for module in loaded.modules())
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    return loaded


def edits(folder: Path) -> list[dict]:
    return json.loads((folder / MANIFEST).read_text())["edits"]


@pytest.mark.parametrize("name", FACTORIES)
def test_an_unchanged_network_needs_no_edits_and_computes_the_same(tmp_path, name):
    model = make(name, seed=3).eval()
    loaded = round_trip(model, tmp_path, FACTORIES[name])
    assert edits(tmp_path / "one") == []
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(image), loaded(image))


SAVING = """
import sys, torch
from compress_core import load, save
model = load(sys.argv[1], factory={factory!r})
save(model, sys.argv[2], factory={factory!r})
"""


def test_another_process_writes_the_same_bytes(tmp_path):
    model = make("conv", seed=5)
    narrow_stem(model, 10)
    model.head = nn.Sequential(nn.Linear(32, 3, bias=False), nn.Linear(3, 10))
    save(model, tmp_path / "one", factory=FACTORIES["conv"])
    script = SAVING.format(factory=FACTORIES["conv"])
    command = [sys.executable, "-c", script, tmp_path / "one", tmp_path / "two"]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "1"})
    for name in (MANIFEST, TENSORS):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def narrow_stem(model: nn.Module, keep: int) -> None:
    """Cut the stem's channels as pruning does: in place, with the layers that read them."""
    with torch.no_grad():
        model.stem.weight = nn.Parameter(model.stem.weight[:keep].clone())
        model.stem.out_channels = keep
        for name in ("weight", "bias"):
            setattr(model.bn, name, nn.Parameter(getattr(model.bn, name)[:keep].clone()))
        for name in ("running_mean", "running_var"):
            setattr(model.bn, name, getattr(model.bn, name)[:keep].clone())
        model.bn.num_features = keep
        block = model.blocks[0]
        block.conv1.weight = nn.Parameter(block.conv1.weight[:, :keep].clone())
        block.conv1.in_channels = keep
        block.skip = nn.Conv2d(keep, 16, 1, bias=False)


def test_a_narrowed_convolutional_network_comes_back_and_trains_on(tmp_path):
    model = make("conv")
    narrow_stem(model, 10)
    model.eval()
    loaded = round_trip(model, tmp_path, FACTORIES["conv"])
    assert (loaded.stem.out_channels, loaded.bn.num_features, loaded.blocks[0].conv1.in_channels) == (10, 10, 10)
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(image), loaded(image))
    trained = apply_techniques(loaded, [Learn(epochs=2, rate=3e-3)], make_run())
    assert make_run().evaluate(trained).value > 0.6
    assert trained.stem.weight.shape == (10, 1, 3, 3)


def test_a_narrowed_lstm_comes_back_and_trains_on(tmp_path):
    model = make("lstm")
    model.lstm = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
    model.head = nn.Linear(12, 10)
    model.eval()
    loaded = round_trip(model, tmp_path, FACTORIES["lstm"])
    assert (loaded.lstm.hidden_size, loaded.lstm.num_layers, loaded.lstm.bidirectional) == (6, 2, True)
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(image), loaded(image))
    trained = apply_techniques(loaded, [Learn()], make_run(max_batches=2))
    assert not torch.equal(trained.lstm.weight_hh_l1, loaded.lstm.weight_hh_l1)


def test_shared_weights_and_shared_modules_stay_shared(tmp_path):
    model = nets.Tied().eval()
    with torch.no_grad():
        model.embed.weight.mul_(3)
    loaded = round_trip(model, tmp_path, TIED)
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.one is loaded.two
    with safe_open(tmp_path / "one" / TENSORS, framework="pt") as file:
        assert len(file.keys()) == 3, "a shared tensor is written once"
    index = torch.arange(5)
    assert torch.equal(model(index), loaded(index))
    loaded(index).sum().backward()
    assert loaded.embed.weight.grad is loaded.head.weight.grad


def test_parts_of_one_storage_come_back_each_with_its_values(tmp_path):
    model = make("mlp").eval()
    with torch.no_grad():
        both = torch.randn(32, 96)
        model.layers[1].weight = nn.Parameter(both[:, :64])
        model.layers[3].weight = nn.Parameter(both[:, 64:])
    loaded = round_trip(model, tmp_path, FACTORIES["mlp"])
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(image), loaded(image))


def test_a_passing_buffer_in_two_places_may_change(tmp_path):
    model = nn.Sequential(make("mlp"), nets.Attribute(), nets.Attribute())
    model[2].passing = model[1].passing = torch.full((3,), 5.0)
    save(model, tmp_path / "a", factory="tests.core.nets:pair")
    loaded = load(tmp_path / "a", factory="tests.core.nets:pair")
    assert loaded[1].passing.tolist() == loaded[2].passing.tolist() == [5.0] * 3


def test_weights_that_were_tied_or_untied_since_stay_so(tmp_path):
    model = nets.Tied()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone() + 1)
    model.two = nn.Linear(4, 4)
    loaded = round_trip(model, tmp_path / "untied", TIED)
    assert loaded.head.weight is not loaded.embed.weight
    assert loaded.one is not loaded.two
    model = nets.Nested()
    model.extra.append(model.extra[1])
    loaded = round_trip(model, tmp_path / "tied", NESTED)
    assert loaded.extra[2] is loaded.extra[1]


def test_changed_attributes_buffers_and_number_formats_come_back(tmp_path):
    model = nets.Attribute(factor=0.5).eval()
    model.shape = (4, 5)
    model.steps = torch.tensor([7, 8, 9], dtype=torch.int32)
    model.passing = torch.tensor([1.0, float("nan"), 3.0])
    model.inner = model.inner.double()
    loaded = round_trip(model, tmp_path, ATTRIBUTE)
    assert (loaded.factor, loaded.shape) == (0.5, (4, 5))
    assert type(loaded.shape) is tuple
    assert loaded.inner.weight.dtype == torch.float64
    assert (loaded.steps.dtype, loaded.steps.tolist()) == (torch.int32, [7, 8, 9])
    assert torch.equal(loaded.passing.nan_to_num(-1), model.passing.nan_to_num(-1))
    assert "passing" not in loaded.state_dict()


def test_the_factory_s_own_arguments_are_kept(tmp_path):
    model = nets.Attribute(factor=0.5)
    save(model, tmp_path / "a", factory=ATTRIBUTE, params={"factor": 0.5})
    assert edits(tmp_path / "a") == []
    assert load(tmp_path / "a", factory=ATTRIBUTE).factor == 0.5


@pytest.mark.parametrize(
    "value",
    [
        (8, 16),
        [8, (4, 2)],
        {"deep": (1, {"a": None})},
        torch.bfloat16,
        {"dtype": "int8"},
        {"tuple": [1]},
        True,
        nan,
        (inf, -inf),
    ],
)
def test_the_factory_s_own_arguments_keep_their_types(tmp_path, value):
    save(nets.Keeper(value), tmp_path / "a", factory=KEEPER, params={"value": value})
    assert edits(tmp_path / "a") == []
    found = load(tmp_path / "a", factory=KEEPER).value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_numbers_that_are_not_finite_are_kept_in_attributes_and_arguments(tmp_path):
    model = nets.Keeper(0.5)
    model.value = (nan, -inf)
    model.inner = nn.Threshold(0.5, nan)
    loaded = round_trip(model, tmp_path, KEEPER)
    assert repr(loaded.value) == "(nan, -inf)"
    assert repr(loaded.inner.value) == "nan"
    model = nets.Keeper(nan)
    save(model, tmp_path / "nan", factory=KEEPER, params={"value": nan})
    assert edits(tmp_path / "nan") == []


def test_a_factory_s_argument_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"argument 'value' is or holds a list") as caught:
        save(nets.Keeper([date(2026, 1, 1)]), tmp_path / "a", factory=KEEPER, params={"value": [date(2026, 1, 1)]})
    assert "numbers" in caught.value.mend
    assert list(tmp_path.iterdir()) == []


def test_a_convolution_that_became_two_and_a_child_that_went_come_back(tmp_path):
    model = nets.Nested().eval()
    model.block["b"] = nn.Sequential(
        nn.Conv2d(4, 2, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(2, 4, (1, 3), padding=(0, 1))
    )
    del model.extra[0]
    model.head.bias = None
    loaded = round_trip(model, tmp_path, NESTED)
    assert loaded.block["b"][0].kernel_size == (3, 1)
    assert len(loaded.extra) == 1
    assert loaded.head.bias is None
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(image), loaded(image))
    assert {edit["op"] for edit in edits(tmp_path / "one")} == {"replace", "remove"}


def test_a_child_that_became_nothing_comes_back_as_nothing(tmp_path):
    model = make("conv")
    del model.blocks[1]
    model.head = nn.Linear(16, 10)
    loaded = round_trip(model.eval(), tmp_path, FACTORIES["conv"])
    assert len(loaded.blocks) == 1
    assert loaded(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_a_changed_number_of_heads_comes_back(tmp_path):
    model = make("transformer").eval()
    attention = model.encoder.layers[1].self_attn
    attention.num_heads, attention.head_dim = 4, 4
    loaded = round_trip(model, tmp_path, FACTORIES["transformer"])
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(image), loaded(image))
    assert loaded.encoder.layers[1].self_attn.num_heads == 4


def test_masks_frozen_parameters_and_provenance_are_kept(tmp_path):
    model = make("mlp")
    hold_zeros(model.layers[1], "weight")
    model.layers[3].weight.requires_grad_(False)
    loaded = round_trip(model, tmp_path, FACTORIES["mlp"], provenance={"step": "clip", "seed": 3})
    assert masked_tensors(loaded) == ["layers.1.weight"]
    assert [name for name, value in loaded.named_parameters() if not value.requires_grad] == ["layers.3.weight"]
    assert json.loads((tmp_path / "one" / MANIFEST).read_text())["provenance"] == {"seed": 3, "step": "clip"}


def training(model: nn.Module) -> dict[str, bool]:
    return {name: value.requires_grad for name, value in model.named_parameters(remove_duplicate=False)}


def test_what_a_factory_froze_and_somebody_unfroze_stays_unfrozen(tmp_path):
    model = nets.Frozen()
    model.stem.weight.requires_grad_(True)
    model.head.bias.requires_grad_(False)
    loaded = round_trip(model, tmp_path, "tests.core.nets:Frozen")
    assert training(loaded) == {"stem.weight": True, "stem.bias": False, "head.weight": True, "head.bias": False}


def test_a_shared_weight_that_was_frozen_or_unfrozen_comes_back_so_under_each_of_its_names(tmp_path):
    model = nets.Tied()
    model.head.weight.requires_grad_(False)
    loaded = round_trip(model, tmp_path / "frozen", TIED)
    assert training(loaded) == training(model)
    model = nets.Frozen()
    model.head.weight = model.stem.weight
    loaded = round_trip(model, tmp_path / "tied", "tests.core.nets:Frozen")
    assert loaded.head.weight is loaded.stem.weight
    assert training(loaded) == training(model)


def test_whether_a_parameter_trains_is_compared_when_a_network_is_saved(tmp_path, monkeypatch):
    model = make("mlp")
    model.layers[1].weight.requires_grad_(False)
    monkeypatch.setattr("compress_core.artifact._trains", lambda model, fresh: {})
    with pytest.raises(ArtifactError, match=r"whether 'layers.1.weight' trains does not survive"):
        save(model, tmp_path / "a", factory=FACTORIES["mlp"])


def test_nothing_in_an_artifact_is_a_pickle(tmp_path):
    save(make("conv"), tmp_path / "a", factory=FACTORIES["conv"])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [MANIFEST, TENSORS]
    assert int.from_bytes((tmp_path / "a" / TENSORS).read_bytes()[:8], "little") < 10_000


def test_saving_and_loading_leave_the_random_numbers_of_the_caller(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    save(make("conv"), tmp_path / "a", factory=FACTORIES["conv"])
    load(tmp_path / "a", factory=FACTORIES["conv"])
    assert torch.equal(torch.rand(3), expected)


class Doubled(torch.Tensor):
    """A tensor subclass."""


def with_parametrization(model):
    parametrizations.weight_norm(model.layers[1])


def with_prune_mask(model):
    prune.l1_unstructured(model.layers[1], "weight", 0.5)


def with_hook(model):
    model.layers[1].register_forward_hook(lambda module, inputs, output: output * 2)


def with_full_backward_hook(model):
    model.layers[1].register_full_backward_hook(lambda module, given, got: None)


def with_replaced_forward(model):
    model.layers[1].forward = lambda x: x


def with_unregistered_type(model):
    model.layers[1] = nets.Own()


def with_tensor_subclass(model):
    model.layers[1].register_buffer("extra", torch.zeros(2).as_subclass(Doubled))


def with_an_object(model):
    model.layers[1].note = object()


def with_a_view_of_a_weight(model):
    model.layers[1].register_buffer("head", model.layers[1].weight.detach()[:2])


def with_a_weight_on_another_s_memory(model):
    model.layers[3].weight = nn.Parameter(model.layers[1].weight.detach()[:, :32])


def with_a_passing_view(model):
    model.layers[1].register_buffer("turned", model.layers[1].weight.detach().t(), persistent=False)


def with_a_sparse_tensor(model):
    model.layers[1].register_buffer("extra", torch.eye(3).to_sparse())


def with_a_lazy_module(model):
    model.layers[1] = nn.LazyLinear(32)


def with_an_unplain_argument(model):
    model.layers[2] = nn.Softmax(dim=object())


@pytest.mark.parametrize(
    ("change", "message", "mend"),
    [
        (with_parametrization, "parametrization", "remove_parametrizations"),
        (with_prune_mask, r"mask of torch\.nn\.utils\.prune|hook", "remove"),
        (with_hook, "hook", "handle"),
        (with_full_backward_hook, "hook", "handle"),
        (with_replaced_forward, "replaced `forward`", "registered type"),
        (with_unregistered_type, r"the type tests\.core\.nets\.Own", "register_modules"),
        (with_tensor_subclass, "'extra' as Doubled", "plain tensors"),
        (with_a_view_of_a_weight, r"'layers.1.head' and 'layers.1.weight' share memory", "clone"),
        (with_a_weight_on_another_s_memory, r"'layers.1.weight' and 'layers.3.weight' share", "same nn.Parameter"),
        (with_a_passing_view, r"'layers.1.turned' and 'layers.1.weight' share memory", "clone"),
        (with_a_sparse_tensor, "'extra' as a sparse tensor", "to_dense"),
        (with_an_object, "'note' of type object", "numbers"),
        (with_a_lazy_module, "lazy", "run the network once"),
        (with_an_unplain_argument, "type object", "numbers"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_module_and_mend(tmp_path, change, message, mend):
    save(make("mlp"), tmp_path / "a", factory=FACTORIES["mlp"], provenance={"of": "before"})
    model = make("mlp")
    change(model)
    with pytest.raises(ArtifactError, match=message) as caught:
        save(model, tmp_path / "a", factory=FACTORIES["mlp"])
    assert "layers." in caught.value.what
    assert mend in caught.value.mend
    assert str(tmp_path / "a") in caught.value.where
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["provenance"] == {"of": "before"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "nothing half-written is left"


def with_an_altered_byte(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)


def truncated(folder):
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_an_altered_byte, "altered: its checksum differs"),
        (truncated, "bytes instead of"),
        (lambda folder: (folder / TENSORS).unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "there is no manifest.json"),
    ],
)
def test_a_damaged_artifact_is_told_with_its_folder_and_mend(tmp_path, change, message):
    save(make("mlp"), tmp_path / "a", factory=FACTORIES["mlp"])
    change(tmp_path / "a")
    with pytest.raises(ArtifactError, match=message) as caught:
        load(tmp_path / "a", factory=FACTORIES["mlp"])
    assert caught.value.where == str(tmp_path / "a")
    assert "dvc" in caught.value.mend


def rewrite(folder: Path, **fields) -> None:
    """Change the manifest as somebody would who also corrects the checksums."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **fields}))


def test_a_factory_that_nobody_trusts_is_not_run(tmp_path):
    save(make("mlp"), tmp_path / "a", factory=FACTORIES["mlp"])
    rewrite(tmp_path / "a", factory="tests.core.nets:fails")
    with pytest.raises(ArtifactError, match="is not trusted") as caught:
        load(tmp_path / "a", factory=FACTORIES["mlp"])
    assert "tests.core.nets:fails" in caught.value.mend
    with pytest.raises(ArtifactError, match="fails with ValueError: no such file"):
        load(tmp_path / "a", trust=["tests.core.nets:fails"])


@pytest.mark.parametrize(
    "factory",
    [
        "compress_data.parquet:os.system",  # by way of an attribute
        "compress_prune.channelwise:keeps_of",  # a function that the plugin imports
        "compress_data.parquet:Path",  # a class that it imports
        "compress_data.function:resolve",  # the core's own
        "compress_data.function:Import",  # the plugin's, and no network
        "compress_zoo:__getattr__",
        "compress_zoo.__main__:MLP",
        "compress_zoo",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_a_plugin_only_imports_is_not_run(tmp_path, factory, nested):
    save(make("mlp"), tmp_path / "a", factory=FACTORIES["mlp"])
    params = {"command": f"touch {tmp_path / 'run'}"}
    if nested:
        module = {"factory": factory, "params": params, "edits": []}
        rewrite(tmp_path / "a", edits=[{"op": "replace", "path": "layers.1", "module": module}])
    else:
        rewrite(tmp_path / "a", factory=factory, params=params)
    with pytest.raises(ArtifactError, match=f"{factory!r} is not trusted"):
        load(tmp_path / "a", factory=FACTORIES["mlp"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factory", ["compress_zoo:ResNet20", "compress_zoo.resnet:ResNet20", "compress_zoo:MLP"])
def test_what_a_plugin_defines_is_trusted(tmp_path, factory):
    model = build_model(factory, {}, seed=3).eval()
    save(model, tmp_path / "a", factory=factory)
    found = load(tmp_path / "a").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def test_an_artifact_loads_without_naming_a_factory_only_if_a_plugin_has_it(tmp_path):
    save(make("mlp"), tmp_path / "a", factory=FACTORIES["mlp"])
    with pytest.raises(ArtifactError, match=r"'tests.support:MLP' is not trusted"):
        load(tmp_path / "a")
    assert load(tmp_path / "a", trust=[FACTORIES["mlp"]]).layers[1].out_features == 32


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tests.core.nets:returns_text", "returns str"),
        ("tests.core.nets:nobody", "no 'nobody' there"),
        ("tests.no_such_module:Net", "no module 'tests.no_such_module'"),
        ("tests.core.nets:__name__", "is no function or class"),
        ("no import string", "is no import string"),
    ],
)
def test_a_factory_that_does_not_fit_is_told(tmp_path, factory, message):
    with pytest.raises(ArtifactError, match=message):
        save(make("mlp"), tmp_path / "a", factory=factory)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {"width": 24}}, "has the shape"),
        ({"params": {"breadth": 24}}, "TypeError"),
        ({"factory": FACTORIES["lstm"]}, "has no tensor|no tensor"),
        ({"edits": [{"op": "remove", "path": "layers.9"}]}, "does not fit the network"),
        ({"edits": [{"op": "explode", "path": ""}]}, "unknown edit 'explode'"),
        ({"edits": [{"op": "setattr", "path": "", "name": "_modules", "value": 1}]}, "private attribute"),
        (
            {
                "edits": [
                    {"op": "replace", "path": "layers.1", "module": {"type": "os.system", "arguments": {}, "edits": []}}
                ]
            },
            "no installed plugin registers",
        ),
        ({"masked": ["layers.77.weight"]}, "does not fit the network"),
        ({"trains": {"layers.77.weight": False}}, "does not fit the network"),
        ({"trains": ["layers.1.weight"]}, "does not fit the network"),
    ],
)
def test_a_factory_or_manifest_that_has_changed_since_is_told_with_the_folder(tmp_path, changes, message):
    save(make("mlp"), tmp_path / "a", factory=FACTORIES["mlp"])
    rewrite(tmp_path / "a", **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(tmp_path / "a", trust=list(FACTORIES.values()))
    assert str(tmp_path / "a") in caught.value.where


def test_a_tensor_that_is_missing_from_the_file_is_named(tmp_path):
    save(make("mlp"), tmp_path / "a", factory=FACTORIES["mlp"])
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    manifest.pop("files")
    tensors = {name: tensor for name, tensor in make("mlp").state_dict().items() if name != "layers.5.bias"}
    with replacing(tmp_path / "a") as folder:
        write_tensors(folder / TENSORS, tensors)
        write_manifest(folder, manifest)
    with pytest.raises(ArtifactError, match=r"no tensor 'layers.5.bias'"):
        load(tmp_path / "a", factory=FACTORIES["mlp"])


def test_an_export_is_no_model(tmp_path):
    with replacing(tmp_path / "a") as folder:
        (folder / "model.onnx").write_text("x")
        write_manifest(folder, {"kind": "export"})
    with pytest.raises(ArtifactError, match="'export', not 'model'"):
        load(tmp_path / "a")


def test_saving_leaves_the_network_as_it_was(tmp_path):
    model = make("conv").train()
    before = deepcopy(model.state_dict())
    save(model, tmp_path / "a", factory=FACTORIES["conv"])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
