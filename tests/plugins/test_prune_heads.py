"""Attention heads go: torch's attention, attention written by hand, and what is refused by name."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from compress_export import Onnx
from compress_prune import Prune
from compress_prune.heads import head_groups
from compress_zoo import TextTransformer
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.attention import Attention, unpack
from compress_core.channels.coupling import cut_keeps, keeps_of, zero_keeps
from compress_core.errors import ModelError
from compress_core.factory import build_model
from tests.core import attention_nets as nets
from tests.plugins.test_prune import Epochs
from tests.support import make, make_run


def reader(kind) -> nets.Reader:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nets.Reader(kind()).eval()


def reader_of(kind: str) -> nn.Module:
    return reader(getattr(nets, kind))


def transformer(**params) -> nn.Module:
    return build_model("tests.support:Transformer", params, seed=0)


def pruned(model, run=None, **fields):
    return apply_techniques(model, [Prune(**{"granularity": "head", "amount": 0.5, **fields})], run or make_run())


WRITTEN = {
    nets.Packed: {"num_heads": 2, "attn_dim": 8, "head_dim": 4},
    nets.PackedByHead: {"num_heads": 2, "attn_dim": 16, "head_dim": 4},
    nets.Biased: {"num_heads": 2, "attn_dim": 16, "head_dim": 4},
    nets.ByWidth: {"n_heads": 2, "dim": 8},
    nets.Bert: {},
}


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_attention_by_hand_loses_whole_heads_and_only_the_numbers_that_count_them(kind, tmp_path):
    model, run = reader(kind), make_run()
    (image,), _ = run.example
    (group,), left = head_groups(model, run)
    assert (group.size, left) == (4, [])
    keeps = keeps_of([group], [torch.tensor([True, False, False, True])])
    masked, cut = deepcopy(model), deepcopy(model)
    zero_keeps(masked, keeps)
    cut_keeps(cut, keeps)
    assert torch.allclose(masked(image), cut(image), atol=1e-6)
    assert not torch.allclose(masked(image), model(image), atol=1e-3)
    small = pruned(model, run)
    for name, value in WRITTEN[kind].items():
        assert getattr(small.attention, name) == value
    widths = {
        path: layer.weight.shape for path, layer in small.attention.named_modules() if isinstance(layer, nn.Linear)
    }
    assert sum(rows * columns for rows, columns in widths.values()) == 4 * 16 * 16 // 2
    factory = "tests.plugins.test_prune_heads:reader_of"
    save(small, tmp_path / "model", factory=factory, params={"kind": kind.__name__})
    assert torch.equal(load(tmp_path / "model", factory=factory)(image), small(image))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (nets.PackedByWidth, "heads of attention are left alone: the network does not run"),
        (nets.ByWholeWidth, "heads of attention are left alone: the network"),
        (nets.Grouped, "heads of attention are left alone: the layers that compute its heads are not found"),
    ],
)
def test_attention_whose_heads_cannot_go_is_named_with_the_reason(kind, says):
    with pytest.raises(ModelError, match=says):
        pruned(reader(kind))


@pytest.mark.parametrize("name", ["mlp", "conv", "lstm"])
def test_a_network_without_attention_is_refused(name):
    with pytest.raises(ModelError, match="no heads that can be pruned"):
        pruned(make(name))


def test_the_heads_that_stay_are_those_of_the_largest_norm():
    model = make("transformer")
    small = pruned(model)
    for before, after in zip(model.encoder.layers, small.encoder.layers, strict=True):
        packed, apart = before.self_attn, after.self_attn
        assert isinstance(apart, Attention)
        rows = packed.in_proj_weight.reshape(3, 2, 8, 16)
        columns = packed.out_proj.weight.reshape(16, 2, 8)
        scores = rows.square().sum((0, 2, 3)) + columns.square().sum((0, 2))
        best = int(scores.argmax())
        assert torch.equal(apart.q_proj.weight, rows[0, best])
        assert torch.equal(apart.k_proj.weight, rows[1, best])
        assert torch.equal(apart.v_proj.weight, rows[2, best])
        assert torch.equal(apart.out_proj.weight, columns[:, best])
        assert torch.equal(apart.out_proj.bias, packed.out_proj.bias)


def test_heads_whose_rows_are_zero_go_without_any_change_of_the_outputs():
    model, run = make("transformer").eval(), make_run()
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_weight.unflatten(0, (3, 2, 8))[:, 1] = 0
            layer.self_attn.in_proj_bias.unflatten(0, (3, 2, 8))[:, 1] = 0
            layer.self_attn.out_proj.weight[:, 8:] = 0
    small = pruned(model, run)
    (image,), _ = run.example
    assert torch.allclose(small(image), model(image), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_taylor_keeps_the_head_that_the_loss_needs():
    """The second head's values reach nothing, so no gradient of the loss does; its weights are the larger ones."""
    model, run = make("transformer"), make_run()
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_weight.unflatten(0, (3, 2, 8))[:, 1] *= 5
            layer.self_attn.out_proj.weight[:, 8:] = 0
    for criterion, kept in (("taylor", 0), ("l2", 1)):
        small = pruned(model, run, criterion=criterion)
        for before, after in zip(model.encoder.layers, small.encoder.layers, strict=True):
            rows = before.self_attn.in_proj_weight.unflatten(0, (3, 2, 8))
            assert torch.equal(after.self_attn.v_proj.weight, rows[2, kept])


def test_over_the_whole_network_layers_lose_different_numbers_and_keep_one():
    said: list[str] = []
    model = transformer(layers=3, heads=4)
    with torch.no_grad():
        model.encoder.layers[1].self_attn.out_proj.weight[:, 4:] *= 0.01
        model.encoder.layers[1].self_attn.in_proj_weight.unflatten(0, (3, 4, 4))[:, 1:] *= 0.01
    small = pruned(model, make_run(teller=said.append), amount=0.25, allocation="global")
    counts = [layer.self_attn.num_heads for layer in small.encoder.layers]
    assert counts == [4, 1, 4]
    assert isinstance(small.encoder.layers[0].self_attn, nn.MultiheadAttention)
    assert said[-1] == "prune: 3 of 12 heads went (encoder.layers.1.self_attn 4 to 1)"


def test_attention_that_loses_nothing_is_torchs_own_again_bit_for_bit():
    said: list[str] = []
    model = make("transformer")
    same = pruned(model, make_run(teller=said.append), amount=0.1)
    assert "no head went: nothing changed" in said[-1]
    assert isinstance(same.encoder.layers[0].self_attn, nn.MultiheadAttention)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())


def test_skipped_attention_keeps_its_heads_and_is_named():
    said: list[str] = []
    small = pruned(make("transformer"), make_run(teller=said.append), skip=("encoder.layers.0.self_attn",))
    assert isinstance(small.encoder.layers[0].self_attn, nn.MultiheadAttention)
    assert small.encoder.layers[1].self_attn.num_heads == 1
    assert any("encoder.layers.0.self_attn" in text and "shall keep its heads" in text for text in said)


def test_heads_of_attention_that_stands_twice_or_adds_keys_are_left_alone():
    model = make("transformer")
    model.encoder.layers[1].self_attn = model.encoder.layers[0].self_attn
    with pytest.raises(ModelError, match="stands in several places"):
        pruned(model)
    model = make("transformer")
    model.encoder.layers[0].self_attn = nn.MultiheadAttention(16, 2, add_bias_kv=True, batch_first=True)
    said: list[str] = []
    pruned(model, make_run(teller=said.append))
    assert any("encoder.layers.0.self_attn are left alone: it adds keys of its own" in text for text in said)


@pytest.mark.parametrize("schedule", ["gradual", "one-shot", "iterative"])
def test_heads_go_while_the_digits_are_learned_and_the_result_comes_back_from_disk(schedule, tmp_path):
    run, factory = make_run(), "tests.support:Transformer"
    model = transformer(heads=4)
    rounds = {"rounds": 2} if schedule == "iterative" else {}
    technique = Prune(granularity="head", amount=0.5, schedule=schedule, **rounds)
    small = apply_techniques(model, [technique, Epochs(epochs=2 if rounds else 4)], run)
    assert [layer.self_attn.num_heads for layer in small.encoder.layers] == [2, 2]
    assert run.evaluate(small).value >= 0.5
    save(small, tmp_path / "model", factory=factory, params={"heads": 4})
    loaded = load(tmp_path / "model", factory=factory)
    (image,), _ = run.example
    assert torch.equal(loaded(image), small(image))
    again = pruned(loaded, run)
    assert [layer.self_attn.num_heads for layer in again.encoder.layers] == [1, 1]


def test_the_texts_transformer_with_padding_loses_heads_and_runs_in_onnxruntime(tmp_path):
    model = TextTransformer(vocabulary=50, length=12, width=16, heads=4, dropout=0.0).eval()
    ids = torch.randint(1, 50, (3, 12))
    mask = torch.arange(12) < torch.tensor([[12], [7], [1]])
    whole = model(ids, mask)
    paths = [f"encoder.layers.{index}.self_attn" for index in (0, 1)]
    unpack(model, paths)
    assert torch.allclose(model(ids, mask), whole, atol=1e-5)
    with torch.no_grad():
        keeps = {}
        for path in paths:
            for name in ("q_proj", "k_proj", "v_proj"):
                keeps[f"{path}.{name}", "out", 0] = torch.arange(16) >= 4
            keeps[f"{path}.out_proj", "in", 0] = torch.arange(16) >= 4
            keeps[f"{path}.num_heads", "attribute", 0] = torch.arange(4) >= 1
        masked = deepcopy(model)
        zero_keeps(masked, keeps)
        cut_keeps(model, keeps)
        assert model.encoder.layers[0].self_attn.num_heads == 3
        assert torch.allclose(model(ids, mask), masked(ids, mask), atol=1e-5)
        exporter = Onnx()
        exporter.export(model, tmp_path, ((ids[:2], mask[:2]), {}))
        assert torch.allclose(exporter.load(tmp_path, 1)(ids, mask), model(ids, mask), atol=1e-4)
