"""Weights as codes: what is kept, byte by byte, and that networks of every kind keep working."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from compress_codes import Binary, Codebook, PowerOfTwo, RoundWeights, Ternary, WeightOnly
from compress_codes.coded import CodedTensor
from compress_codes.packing import pack, packed_bytes, unpack
from compress_distill import Distill
from compress_export import Onnx
from compress_prune import Prune
from compress_tune import Tune
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError, RecipeError
from compress_core.order import check_together
from compress_core.testing import checks_for, factory_of
from tests.support import ConvNet, make, make_run

EVERY = [
    WeightOnly(bits=4, granularity="group", group=16),
    WeightOnly(bits=8),
    WeightOnly(bits=3, symmetric=False),
    RoundWeights(bits=6),
    Codebook(clusters=16),
    Codebook(clusters=11, scope="network"),
    Ternary(),
    Ternary(method="ttq"),
    Binary(),
    PowerOfTwo(bits=4),
]


def label(technique):
    return "-".join([technique.name, *(f"{value}" for value in technique.model_dump(exclude_unset=True).values())])


class Zoo(nn.Module):
    """Layers of every kind that can be coded."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(17, 16, padding_idx=0)
        self.line = nn.Conv1d(1, 8, 3, padding=1)
        self.plane = nn.Conv2d(1, 8, 3, padding="same", padding_mode="reflect")
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.space = nn.Conv3d(1, 8, (1, 3, 3), padding=(0, 1, 1))
        self.up1 = nn.ConvTranspose1d(8, 6, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2, output_padding=1)
        self.up3 = nn.ConvTranspose3d(8, 6, (1, 2, 2))
        self.gru = nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.rnn = nn.RNN(16, 8, batch_first=True, nonlinearity="relu")
        self.head = nn.Linear(6 * 3 + 8 + 16, 10)

    def forward(self, image):
        x = self.depth(self.plane(image))
        parts = [
            self.up1(self.line(image.flatten(2))).mean(2),
            self.up2(x).mean((2, 3)),
            self.up3(self.space(image.unsqueeze(1))).mean((2, 3, 4)),
            self.rnn(self.gru(image.squeeze(1))[0])[0][:, -1],
            self.table((image.flatten(1) * 16).long().clamp(0, 16)).mean(1),
        ]
        return self.head(torch.cat(parts, 1))


class Tied(nn.Module):
    """A table that gives the rows and the logits, as in language models."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(17, 16), nn.Linear(16, 17, bias=False)
        self.out.weight = self.table.weight
        self.head = nn.Linear(17, 10)

    def forward(self, image):
        return self.head(self.out(self.table((image.flatten(1) * 16).long().clamp(0, 16)).mean(1)))


def images(count=5):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def coded_tensors(model):
    return [module for module in model.modules() if isinstance(module, CodedTensor)]


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 70), seed=st.integers(0, 99))
def test_packed_codes_come_back_and_eight_of_them_take_as_many_bytes_as_bits(bits, count, seed):
    codes = torch.randint(0, 1 << bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(count, bits) == bits * math.ceil(count / 8)
    assert unpack(packed, bits, count).tolist() == codes.tolist()


def test_codes_lie_lowest_bit_first():
    assert pack(torch.tensor([1, 15, 0, 2], dtype=torch.uint8), 4).tolist() == [0xF1, 0x20, 0, 0]
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 3).tolist() == [0b11010001, 0, 0]


@pytest.mark.parametrize("technique", EVERY, ids=label)
def test_every_kind_of_layer_comes_back_from_disk_bit_for_bit(technique, tmp_path):
    torch.manual_seed(0)
    model = Zoo().eval()
    notes = []
    small = apply_techniques(model, [technique], make_run(teller=notes.append))
    left = [note for note in notes if "left real" in note]
    assert len(coded_tensors(small)) + sum(note.partition("(")[0].count(",") + 1 for note in left) == 15
    save(small, tmp_path / "small", factory=factory_of(model))
    loaded = load(tmp_path / "small", factory=factory_of(model))
    with torch.no_grad():
        assert torch.equal(loaded(images()), small(images()))
        assert torch.isfinite(small(images())).all()


@pytest.mark.parametrize("net", ["mlp", "conv", "transformer", "lstm"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_the_bytes_of_the_file_follow_a_closed_form(net, bits, tmp_path):
    model = make(net)
    small = apply_techniques(model, [WeightOnly(bits=bits, granularity="channel")], make_run())
    save(small, tmp_path / "small", factory=factory_of(model))
    from safetensors import safe_open

    with safe_open(tmp_path / "small" / "model.safetensors", framework="pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 (a method of its own)
    codes = sum(size for name, size in sizes.items() if name.endswith(".codes"))
    scales = sum(size for name, size in sizes.items() if name.endswith(".scale"))
    weights = [p for name, p in model.named_parameters() if p.ndim >= 2 and "norm" not in name]
    packed = [math.ceil(w.numel() / 8) * bits if bits < 8 else w.numel() for w in _apart(weights, net)]
    assert codes == sum(packed)
    assert scales == 4 * sum(len(weight) for weight in weights)


def _apart(weights, net):
    """Attention's projections, which torch packs into one weight, are three."""
    for weight in weights:
        yield from weight.chunk(3) if net == "transformer" and weight.shape == (48, 16) else (weight,)


@pytest.mark.parametrize("technique", EVERY, ids=label)
def test_onnxruntime_computes_the_same_from_a_file_that_holds_the_codes(technique, tmp_path):
    torch.manual_seed(0)
    model = ConvNet().eval()
    small = apply_techniques(model, [technique], make_run())
    sizes = {}
    for name, network in (("dense", model), ("small", small)):
        (tmp_path / name).mkdir()
        Onnx().export(network, tmp_path / name, ((images(2),), {}))
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).glob("*.onnx"))
    with torch.no_grad():
        torch.testing.assert_close(Onnx().load(tmp_path / "small", 1)(images()), small(images()), rtol=0, atol=1e-5)
    codes = sum(tensor.codes.nbytes for tensor in coded_tensors(small))
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    graph = onnx.load(next((tmp_path / "small").glob("*.onnx"))).graph
    held = [math.prod(entry.dims) for entry in graph.initializer if entry.data_type in kinds]
    assert sum(held) >= codes
    largest = max(weight.numel() for weight in model.parameters())
    assert not any(entry.data_type == 1 and math.prod(entry.dims) >= largest for entry in graph.initializer)
    assert sizes["small"] < sizes["dense"] * 0.65


def test_recurrent_layers_and_attention_run_in_onnxruntime(tmp_path):
    for net in ("lstm", "transformer"):
        small = apply_techniques(make(net), [WeightOnly(bits=4)], make_run())
        assert coded_tensors(small)
        (tmp_path / net).mkdir()
        Onnx().export(small, tmp_path / net, ((images(2),), {}))
        with torch.no_grad():
            torch.testing.assert_close(Onnx().load(tmp_path / net, 1)(images()), small(images()), rtol=0, atol=1e-5)


def test_a_weight_that_two_layers_share_is_kept_once(tmp_path):
    torch.manual_seed(0)
    model = Tied().eval()
    small = apply_techniques(model, [WeightOnly(bits=4)], make_run())
    assert small.table.coded.codes is small.out.coded.codes
    save(small, tmp_path / "small", factory=factory_of(model))
    loaded = load(tmp_path / "small", factory=factory_of(model))
    assert loaded.table.coded.codes is loaded.out.coded.codes
    notes = []
    apply_techniques(model, [WeightOnly(bits=4, skip=("table",))], make_run(teller=notes.append))
    assert any("out.weight (table.weight has the same weight and stays real)" in note for note in notes)


def test_one_table_for_the_network_is_in_the_file_once(tmp_path):
    model = make("mlp")
    small = apply_techniques(model, [Codebook(clusters=16, scope="network")], make_run())
    first, *others = coded_tensors(small)
    assert all(other.table is first.table for other in others)
    save(small, tmp_path / "small", factory=factory_of(model))
    first, *others = coded_tensors(load(tmp_path / "small", factory=factory_of(model)))
    assert all(other.table is first.table for other in others)


def test_what_grows_stays_real_and_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Linear(1, 10))
    notes = []
    small = apply_techniques(model, [WeightOnly(bits=8, granularity="channel")], make_run(teller=notes.append))
    assert type(small[4]) is nn.Linear
    assert any("left real: 4.weight (its codes would take" in note for note in notes)
    assert [tensor.bits for tensor in coded_tensors(small)] == [8, 8]


def test_a_network_without_weights_to_code_is_left_alone_and_said_so():
    notes = []
    model = make("transformer")
    small = apply_techniques(model, [WeightOnly(skip=("embed", "encoder", "head"))], make_run(teller=notes.append))
    assert not coded_tensors(small)
    assert isinstance(small.encoder.layers[0].self_attn, nn.MultiheadAttention)
    assert any("nothing changed" in note for note in notes)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: WeightOnly(bits=9),
        lambda: WeightOnly(bits=1),
        lambda: WeightOnly(granularity="group", group=0),
        lambda: WeightOnly(group=32),
        lambda: Codebook(clusters=1),
        lambda: Codebook(clusters=257),
        lambda: Ternary(method="ttq", granularity="channel"),
        lambda: PowerOfTwo(bits=7),
        lambda: RoundWeights(bits=1),
        lambda: Binary(delay=1),
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        wrong()


def test_more_clusters_than_weights_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ModelError, match="200 clusters, and no weight has more than 128 entries"):
        apply_techniques(model, [Codebook(clusters=200)], make_run())


@pytest.mark.parametrize("technique", EVERY, ids=label)
def test_a_weight_with_nan_is_refused_by_its_name(technique):
    model = make("mlp")
    with torch.no_grad():
        model.layers[3].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.3\.weight.*not finite"):
        apply_techniques(model, [technique], make_run())


def test_an_unknown_path_in_skip_is_refused():
    with pytest.raises(ModelError, match="matches no module"):
        apply_techniques(make("mlp"), [WeightOnly(skip=("haed",))], make_run())


def test_only_one_technique_decides_the_format_and_nothing_trains_after_it():
    with pytest.raises(RecipeError, match="both decide the format"):
        check_together([WeightOnly(), Ternary()], teacher=False)
    with pytest.raises(RecipeError, match="move it before 'small'"):
        check_together([Tune()], teacher=False, numbers_from="small")


def test_groups_that_do_not_divide_fall_back_to_channels_and_are_named():
    notes = []
    small = apply_techniques(
        ConvNet(), [WeightOnly(bits=4, granularity="group", group=16)], make_run(teller=notes.append)
    )
    assert any("stem.weight has a scale per channel: 16 does not divide 9" in note for note in notes)
    assert (small.stem.coded.rows, small.blocks[0].conv1.coded.rows) == (16, 16 * 9)


@pytest.mark.parametrize("technique", [*EVERY, Ternary(delay=0.5), PowerOfTwo(schedule="incremental")], ids=label)
def test_the_kept_network_is_the_one_that_was_trained(technique):
    """What is evaluated with codes while training, and what is kept, are the same numbers."""
    seen = {}

    class Spy(Tune):
        name = "tune"

        def finish(self, model, state, run):
            seen["outputs"] = model.eval()(images())
            return model

    spy = Spy(epochs=2, learning_rate=5e-3)
    small = apply_techniques(make("conv"), [technique, spy], make_run())
    with torch.no_grad():
        torch.testing.assert_close(small(images()), seen["outputs"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("technique", [entry for entry in EVERY if entry.name != "binary"], ids=label)
def test_removed_weights_stay_zero(technique):
    pruned = apply_techniques(make("conv"), [Prune(amount=0.6)], make_run())
    zeros = {name: p == 0 for name, p in pruned.named_parameters() if p.ndim == 4}
    for others in ([], [Tune(epochs=1)]):
        small = apply_techniques(pruned, [technique, *others], make_run())
        for name, zero in zeros.items():
            assert (small.get_submodule(name.removesuffix(".weight")).weight[zero] == 0).all()


def test_weights_with_zeros_are_not_made_of_bits():
    pruned = apply_techniques(make("mlp"), [Prune(amount=0.5)], make_run())
    notes = []
    small = apply_techniques(pruned, [Binary()], make_run(teller=notes.append))
    assert not coded_tensors(small)
    assert any("bits have no zero" in note for note in notes)
    together = apply_techniques(make("mlp"), [Binary(), Prune(amount=0.5), Tune(epochs=1)], make_run())
    weights = [module.weight for module in together.modules() if type(module) is nn.Linear]
    assert sum(int((weight == 0).sum()) for weight in weights) >= 0.4 * sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("technique", [*EVERY[1:7], Binary()], ids=label)
def test_codes_channel_pruning_distillation_and_tuning_share_a_step(technique):
    dense = apply_techniques(make("conv"), [Tune(epochs=6, learning_rate=5e-3)], make_run())
    joint = [technique, Prune(amount=0.5, granularity="channel", schedule="gradual"), Distill()]
    small = apply_techniques(dense, [*joint, Tune(epochs=8, learning_rate=5e-3)], make_run(teacher=dense))
    assert small.stem.out_channels == 8
    assert len(coded_tensors(small)) >= 5
    assert make_run().evaluate(small).value > 0.4


def test_coded_layers_reopen_as_torchs_own():
    for net in ("conv", "lstm"):
        model = make(net)
        small = apply_techniques(model, [WeightOnly(bits=4)], make_run())
        for path, module in small.named_modules():
            if hasattr(module, "coded_tensors"):
                real = module.reopened({})
                assert type(real) is type(model.get_submodule(path))
                assert all(parameter.requires_grad for parameter in real.parameters())
                for name, tensor in module.coded_tensors().items():
                    assert torch.equal(real.get_parameter(name), tensor())


@pytest.mark.parametrize(
    "check",
    [
        check
        for kind in (WeightOnly, Codebook, Ternary)
        for check in checks_for(kind, nets=("conv", "lstm"), compose=False, export=False)
    ],
    ids=lambda check: f"{check.technique}-{check}",
)
def test_the_promises_of_the_kit(check):
    check()
