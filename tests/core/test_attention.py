"""Attention with projections of their own: torch's is the reference for every argument."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from compress_core.artifact import load, save
from compress_core.attention import Attention, cannot_unpack, pack, unpack
from compress_core.masks import hold_zeros, masked_tensors
from tests.support import make, make_run


def both(**fields) -> tuple[nn.MultiheadAttention, Attention]:
    torch.manual_seed(0)
    holder = nn.ModuleList([nn.MultiheadAttention(12, 3, **fields)])
    for parameter in holder.parameters():
        nn.init.normal_(parameter, std=0.3)
    apart = deepcopy(holder)
    unpack(apart, ["0"])
    return holder[0], apart[0]


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.arange(5) >= torch.tensor([[4], [5]])},
    "bool": {"attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(2)},
    "float": {"attn_mask": torch.randn(4, 5, generator=torch.Generator().manual_seed(1))},
    "per-head": {"attn_mask": torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(1))},
    "both": {
        "attn_mask": torch.zeros(4, 5).masked_fill(torch.ones(4, 5, dtype=torch.bool).triu(2), -torch.inf),
        "key_padding_mask": torch.zeros(2, 5).masked_fill(torch.arange(5) >= torch.tensor([[4], [5]]), -torch.inf),
    },
}


@pytest.mark.parametrize("need", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "fields", [{"batch_first": True}, {"batch_first": True, "kdim": 7, "vdim": 9}, {"bias": False}], ids=str
)
def test_unpacked_attention_computes_what_torchs_does(fields, mask, need):
    one, other = both(**fields)
    inputs = [torch.randn(2, length, size) for length, size in ((4, 12), (5, one.kdim), (5, one.vdim))]
    if not one.batch_first:
        inputs = [value.transpose(0, 1) for value in inputs]
    wanted, found = one(*inputs, **MASKS[mask], **need), other(*inputs, **MASKS[mask], **need)
    assert torch.allclose(wanted[0], found[0], atol=1e-5)
    assert (wanted[1] is None) == (found[1] is None)
    if wanted[1] is not None:
        assert torch.allclose(wanted[1], found[1], atol=1e-6)
    single = [value[0] if one.batch_first else value[:, 0] for value in inputs]
    assert torch.allclose(one(*single)[0], other(*single)[0], atol=1e-5)


def test_gradients_flow_as_in_torchs():
    one, other = both(batch_first=True)
    x = torch.randn(2, 4, 12)
    for module in (one, other):
        module(x, x, x, need_weights=False)[0].square().sum().backward()
    rows = torch.cat([other.q_proj.weight.grad, other.k_proj.weight.grad, other.v_proj.weight.grad])
    assert torch.allclose(one.in_proj_weight.grad, rows, atol=1e-5)


def test_dropout_drops_only_while_training():
    _, other = both(batch_first=True, dropout=0.5)
    x = torch.randn(2, 4, 12)
    assert not torch.equal(other(x, x, x)[0], other(x, x, x)[0])
    other.eval()
    assert torch.equal(other(x, x, x)[0], other(x, x, x)[0])


@pytest.mark.parametrize("fields", [{}, {"kdim": 7, "vdim": 9}, {"bias": False}], ids=str)
def test_packing_again_gives_back_every_bit_flag_and_mark(fields):
    one, _ = both(**fields)
    holder = nn.ModuleList([one])
    one.out_proj.bias.requires_grad_(False) if one.out_proj.bias is not None else None
    tensor = "in_proj_weight" if one.in_proj_weight is not None else "k_proj_weight"
    with torch.no_grad():
        one.get_parameter(tensor)[:2] = 0
    hold_zeros(one, tensor)
    before = {name: (value.clone(), value.requires_grad) for name, value in one.named_parameters()}
    unpack(holder, ["0"])
    held = ["0.q_proj.weight", "0.k_proj.weight", "0.v_proj.weight"] if "in" in tensor else ["0.k_proj.weight"]
    assert masked_tensors(holder) == sorted(held)
    pack(holder, ["0"])
    assert type(holder[0]) is nn.MultiheadAttention
    for name, value in holder[0].named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
    assert masked_tensors(holder) == [f"0.{tensor}"]


def test_what_cannot_be_a_torch_attention_again_stays_unpacked():
    one, _ = both()
    holder = nn.ModuleList([one])
    unpack(holder, ["0"])
    holder[0].v_proj = nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 12))
    pack(holder, ["0"])
    assert type(holder[0]) is Attention


def test_kinds_of_attention_that_stay_whole_say_why():
    class Own(nn.MultiheadAttention):
        pass

    assert cannot_unpack(nn.MultiheadAttention(4, 2)) is None
    assert "keys of its own" in str(cannot_unpack(nn.MultiheadAttention(4, 2, add_bias_kv=True)))
    assert "keys of its own" in str(cannot_unpack(nn.MultiheadAttention(4, 2, add_zero_attn=True)))
    assert "Own" in str(cannot_unpack(Own(4, 2)))


def test_the_causal_hint_alone_is_refused_as_in_torch():
    _, other = both()
    x = torch.randn(4, 2, 12)
    with pytest.raises(ValueError, match="needs attn_mask"):
        other(x, x, x, is_causal=True)


def test_a_transformer_with_unpacked_attention_computes_the_same_and_comes_back_from_disk(tmp_path):
    model = make("transformer").eval()
    apart = deepcopy(model)
    unpack(apart, [f"encoder.layers.{index}.self_attn" for index in (0, 1)])
    (image,), _ = make_run().example
    for fused in (True, False):
        with torch.set_grad_enabled(not fused):
            assert torch.allclose(model(image), apart(image), atol=1e-5)
    save(apart, tmp_path / "model", factory="tests.support:Transformer")
    loaded = load(tmp_path / "model", factory="tests.support:Transformer")
    assert isinstance(loaded.encoder.layers[0].self_attn, Attention)
    assert torch.equal(loaded(image), apart(image))
