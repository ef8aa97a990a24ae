"""The difference between two networks is data from which the second becomes the first."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.artifact import load, save
from compress_core.errors import ArtifactError
from compress_core.plain_values import decode, encode, is_plain, same
from compress_core.rebuilding import apply_edits
from compress_core.structure import differences, torch_types
from tests.core import nets
from tests.support import NETS, make

TYPES = torch_types()
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([torch.float32, torch.int8, torch.bfloat16]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", "tuple", "dict", "dtype"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def kinds(value):
    """A value with the type of every part, so that 1, 1.0 and True differ."""
    match value:
        case dict():
            return {key: kinds(entry) for key, entry in value.items()}
        case list() | tuple():
            return type(value), [kinds(entry) for entry in value]
        case float():
            return type(value), repr(value)
        case _:
            return type(value), value


@given(PLAIN)
def test_a_plain_value_comes_back_from_json_as_it_was(value):
    assert is_plain(value)
    assert kinds(decode(json.loads(json.dumps(encode(value), allow_nan=False)))) == kinds(value)


@given(PLAIN, PLAIN)
def test_two_plain_values_are_the_same_if_every_part_has_the_same_type_and_value(one, other):
    assert same(one, deepcopy(one))
    assert same(one, other) == (kinds(one) == kinds(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), (True,)),
        ((1,), (1.0,)),
        ((1,), [1]),
        (0.0, -0.0),
        (torch.Size([1]), (1,)),
        ("a", object()),
        (object(), object()),
    ],
)
def test_values_that_only_look_alike_are_not_the_same(one, other):
    assert not same(one, other)


@pytest.mark.parametrize("value", [object(), {1: 2}, [object()], torch.zeros(1), nn.Linear(1, 1), {"a": {2}}])
def test_what_is_not_plain_is_refused(value):
    assert not is_plain(value)
    with pytest.raises(ArtifactError, match=r"'place' has an argument of type"):
        encode(value, "place")


def edited(model: nn.Module, fresh: nn.Module) -> tuple[nn.Module, list[dict]]:
    """What the edits, after a way through JSON, make of a fresh network."""
    edits = json.loads(json.dumps(differences(model, fresh, TYPES)))
    return apply_edits(deepcopy(fresh), edits, TYPES), edits


def shape_of(model: nn.Module) -> list:
    """Types, tensors and plain attributes of every module."""
    return [
        (
            path,
            type(module),
            {
                name: (tuple(tensor.shape), tensor.dtype)
                for name, tensor in module._parameters.items()
                if tensor is not None
            },
            {
                name: (tuple(tensor.shape), tensor.dtype)
                for name, tensor in module._buffers.items()
                if tensor is not None
            },
            {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"},
        )
        for path, module in model.named_modules(remove_duplicate=False)
    ]


@pytest.mark.parametrize("name", NETS)
def test_two_networks_of_one_factory_do_not_differ(name):
    assert differences(make(name, 0), make(name, 1), TYPES) == []


def to_half(model):
    model.head = model.head.half()


def without_bias(model):
    model.block["a"].bias = None


def of_another_shape(model):
    model.head = nn.Linear(2, 3, bias=False)


def removed(model):
    del model.block["a"]


def appended(model):
    model.extra.append(nn.Sequential(nn.ReLU(), nn.ModuleList([nn.Linear(2, 2)])))


def put_into_a_sequence(model):
    model.block["b"] = nn.Sequential(model.block["b"], nn.BatchNorm2d(4))


def shared(model):
    model.extra[0] = model.extra[1]


def with_an_attribute(model):
    model.head.note = ("a", 1, 2.5, {"b": None})


def with_a_buffer(model):
    model.head.register_buffer("scale", torch.ones(3, dtype=torch.int32), persistent=False)
    model.head.register_buffer("zero", torch.ones(2, dtype=torch.bool))


def with_a_parameter_as_buffer(model):
    weight = model.head.weight.detach().to(torch.int8)
    del model.head.weight
    model.head.register_buffer("weight", weight)


def with_other_padding(model):
    model.block["a"].padding = (0, 0)
    model.block["b"].padding_mode = "reflect"


CHANGES = (
    to_half,
    without_bias,
    of_another_shape,
    removed,
    appended,
    put_into_a_sequence,
    shared,
    with_an_attribute,
    with_a_buffer,
    with_a_parameter_as_buffer,
    with_other_padding,
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.sampled_from(CHANGES), unique=True, max_size=5))
def test_any_changes_together_come_back_through_json(changes):
    model, fresh = nets.Nested(), nets.Nested()
    for change in changes:
        try:
            change(model)
        except (KeyError, AttributeError):
            continue  # what it changes went with an earlier change
    found, _ = edited(model, fresh)
    assert shape_of(found) == shape_of(model)
    assert differences(model, found, TYPES) == []


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_edit_names_no_module_that_stayed(change):
    model = nets.Nested()
    change(model)
    _, edits = edited(model, nets.Nested())
    assert edits != []
    touched = {
        "to_half": ("head",),
        "of_another_shape": ("head",),
        "with_an_attribute": ("head",),
        "with_a_buffer": ("head",),
        "with_a_parameter_as_buffer": ("head",),
        "appended": ("extra",),
        "shared": ("extra",),
    }.get(change.__name__, ("block",))
    assert all(edit["path"].startswith(touched) for edit in edits)


def test_a_module_in_two_places_stays_one_and_two_stay_two():
    model = nets.Tied()
    found, edits = edited(model, nets.Tied())
    assert edits == []
    assert found.one is found.two
    model.two = nn.Linear(4, 4)
    found, _ = edited(model, nets.Tied())
    assert found.one is not found.two
    model.head = model.one
    found, edits = edited(model, nets.Tied())
    assert found.head is found.one
    assert any(edit["op"] == "alias" for edit in edits)


def test_a_module_in_several_branches_stays_one():
    def branches() -> nn.Module:
        act = nn.ReLU()
        return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), act) for _ in range(3)))

    model = branches()
    found, edits = edited(model, branches())
    assert edits == []
    model[0][1] = model[2][1] = nn.ReLU6()
    found, _ = edited(model, branches())
    assert found[0][1] is found[2][1]
    assert found[0][1] is not found[1][1]
    assert differences(model, found, TYPES) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda lstm: nn.LSTM(8, 5, batch_first=True),
        lambda lstm: nn.LSTM(8, 16, 2, bias=False, dropout=0.5, batch_first=True),
        lambda lstm: nn.LSTM(8, 16, batch_first=True, bidirectional=True),
        lambda lstm: nn.LSTM(8, 16, batch_first=True, proj_size=4),
        lambda lstm: nn.GRU(8, 16, batch_first=True),
        lambda lstm: nn.RNN(8, 16, batch_first=True, nonlinearity="relu"),
    ],
)
def test_a_recurrent_layer_is_built_anew_with_its_private_state(change):
    model = make("lstm")
    model.lstm = change(model.lstm).eval()
    found, edits = edited(model, make("lstm"))
    assert [edit["op"] for edit in edits if edit["path"] == "lstm"] == ["replace"]
    found.lstm.load_state_dict(model.lstm.state_dict())
    sequence = torch.rand(2, 3, 8)
    assert torch.equal(found.lstm.eval()(sequence)[0], model.lstm(sequence)[0])


LAYERS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
    nn.Conv2d(4, 6, (1, 3), padding="same", dilation=2, padding_mode="circular"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    nn.Linear(3, 2, bias=False),
    nn.Bilinear(2, 3, 4),
    nn.Embedding(5, 3, padding_idx=1, max_norm=2.0),
    nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False),
    nn.BatchNorm1d(4, track_running_stats=False),
    nn.GroupNorm(2, 4, affine=False),
    nn.LayerNorm((2, 3), elementwise_affine=False),
    nn.LayerNorm(4, bias=False),
    nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, batch_first=True),
    nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
    nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True, batch_first=True),
    nn.Dropout(0.25),
    nn.LeakyReLU(0.2, inplace=True),
    nn.PReLU(3),
    nn.MaxPool2d(2, stride=1, ceil_mode=True),
    nn.AdaptiveAvgPool2d((1, None)),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.Flatten(2),
    nn.Softmax(dim=1),
    nn.PixelShuffle(2),
    nn.ZeroPad2d((1, 0, 2, 0)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_of_torch_is_rebuilt_from_its_arguments_or_refused(layer):
    model, fresh = nets.Nested(), nets.Nested()
    model.head = layer
    try:
        found, _ = edited(model, fresh)
    except ArtifactError as error:
        assert "'head'" in error.what
        assert isinstance(layer, nn.TransformerEncoderLayer), "only what does not keep its arguments may be refused"
        return
    assert shape_of(found) == shape_of(model)


def test_what_runs_in_a_manifest_is_only_what_is_allowed():
    edit = {
        "op": "replace",
        "path": "head",
        "module": {"type": "subprocess.Popen", "arguments": {"args": "x"}, "edits": []},
    }
    with pytest.raises(ArtifactError, match=r"subprocess\.Popen"):
        apply_edits(nets.Nested(), [edit], TYPES)
    with pytest.raises(ArtifactError, match="private attribute"):
        apply_edits(nets.Nested(), [{"op": "setattr", "path": "head", "name": "__class__", "value": 1}], TYPES)
    with pytest.raises(ArtifactError, match="unknown number format"):
        apply_edits(nets.Nested(), [tensor_edit("load")], TYPES)
    assert all(issubclass(kind, nn.Module) for kind in TYPES.values())


def tensor_edit(dtype: str) -> dict:
    return {"op": "tensors", "path": "head", "tensors": {"weight": {"kind": "parameter", "shape": [1], "dtype": dtype}}}


@pytest.mark.parametrize("path", ["nothing", "head.nothing", "extra.9"])
@pytest.mark.parametrize("op", ["remove", "setattr", "drop_tensor", "tensors", "alias"])
def test_an_edit_that_does_not_fit_is_told_with_its_place(op, path):
    edit = {
        "op": op,
        "path": path,
        "name": "x",
        "value": 1,
        "same_as": "nowhere",
        "tensors": {"a": {"kind": "buffer", "shape": [1], "dtype": "int8"}},
    }
    with pytest.raises(ArtifactError, match="does not fit the network") as caught:
        apply_edits(nets.Nested(), [edit], TYPES)
    assert repr(path) in caught.value.what
    assert "run its step again" in caught.value.mend


def test_children_that_changed_places_are_called_in_their_new_order_after_loading(tmp_path):
    model = make("mlp")
    layers = model.layers._modules
    model.layers._modules = {name: layers[name] for name in ("0", "1", "3", "2", "4", "5")}
    save(model, tmp_path / "model", factory="tests.support:MLP")
    loaded = load(tmp_path / "model", factory="tests.support:MLP")
    x = torch.rand(4, 64)
    assert list(loaded.layers._modules) == list(model.layers._modules)
    assert torch.equal(loaded(x), model.eval()(x))
