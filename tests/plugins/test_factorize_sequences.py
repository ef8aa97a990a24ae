"""Factorizing what reads texts: embeddings, and the projections of attention."""

from __future__ import annotations

import pytest
import torch
from compress_export import Onnx
from compress_factorize import Factorize
from compress_factorize.attention import open_attention
from compress_factorize.embeddings import Lookup, embedding_factors
from compress_factorize.pieces import Area, worthwhile
from compress_tasks import Classification
from compress_zoo.text import TextTransformer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.attention import Attention
from compress_core.data import Columns, Splits
from compress_core.masks import hold_zeros
from compress_core.measure import counts
from compress_core.run import Run
from tests.support import make, make_run

FACTORY = "compress_zoo.text:TextTransformer"
SIZE = {"vocabulary": 200, "length": 12, "width": 32, "layers": 2, "heads": 4, "dropout": 0.0}
WORDS = Area(14, 14, 14)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(count=64):
    """Texts of different lengths; the first word tells the class."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 200, (count, 12), generator=generator)
    mask = torch.arange(12) < torch.randint(3, 13, (count, 1), generator=generator)
    return Columns({"ids": ids * mask, "mask": mask, "label": ids[:, 0] % 2})


def text_run(said=None):
    splits = Splits(texts(), texts(), texts())
    return Run(
        splits=splits,
        task=Classification(input=("ids", "mask")),
        teller=(said if said is not None else []).append,
    )


def with_falling_spectra(model):
    """The network with spectra that fall, as training makes them."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 2:
                left, values, right = torch.linalg.svd(parameter.detach(), full_matrices=False)
                parameter.data.copy_(left * (values * 0.7 ** torch.arange(len(values))) @ right)
    return model


def text_net():
    torch.manual_seed(0)
    return with_falling_spectra(TextTransformer(**SIZE)).eval()


@settings(max_examples=40, deadline=None)
@given(words=st.integers(2, 12), width=st.integers(1, 8), data=st.data(), seed=st.integers(0, 10_000))
def test_a_table_has_the_error_of_its_matrix_and_padding_stays_nothing(words, width, data, seed):
    table = random(words, width, seed=seed)
    table[0] = 0
    values = torch.linalg.svdvals(table)
    rank = data.draw(st.integers(1, len(values)))
    left, right = embedding_factors(table, rank)
    assert left.shape == (words, rank) and right.shape == (rank, width)
    assert not left[0].any()
    lost = torch.linalg.matrix_norm(table - left @ right)
    assert lost == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-9)


def test_an_embedding_of_low_rank_looks_up_the_same_rows():
    layer = nn.Embedding(40, 16, padding_idx=3, scale_grad_by_freq=True)
    with torch.no_grad():
        layer.weight.copy_(random(40, 2) @ random(2, 16, seed=1))
        layer.weight[3] = 0
    found = Lookup().factors(layer, [2])
    ids = torch.tensor([[0, 3, 39], [3, 7, 7]])
    torch.testing.assert_close(found.pieces(ids), layer(ids), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.pieces(ids)[0, 1], torch.zeros(16))
    assert found.error < 1e-6
    narrow, wide = found.pieces
    assert (narrow.padding_idx, narrow.scale_grad_by_freq, wide.bias) == (3, True, None)
    found.pieces(ids).square().sum().backward()
    assert not narrow.weight.grad[3].any() and narrow.weight.grad[7].any()


def test_an_embedding_saves_parameters_and_costs_multiplications():
    layer = nn.Embedding(40, 16)
    found = worthwhile(Lookup(), layer, WORDS)
    assert (found.parameters < 640).all() and len(found) == 11  # 11 * 56 < 640 < 12 * 56
    assert torch.equal(found.macs, found.ranks[:, 0] * 16 * 14)
    assert Lookup().dense(layer, WORDS) == (640, 0)


def test_an_embedding_that_rescales_its_rows_stays_and_is_named():
    model = nn.Sequential(nn.Embedding(200, 32, max_norm=1.0), nn.Flatten(), nn.Linear(12 * 32, 2))
    said = []
    run = Run(splits=text_run().splits, task=Classification(input="ids"), teller=said.append)
    found = Factorize(ratio=0.6).apply(model, run)
    assert "rescales its rows: 0" in said[0] and isinstance(found[0], nn.Embedding)


def test_the_text_transformer_is_factorized_everywhere_and_survives(tmp_path):
    said = []
    run, model = text_run(said), text_net()
    smaller = apply_techniques(model, [Factorize(ratio=0.4)], run)
    assert counts(smaller, run.example).parameters < 0.5 * counts(model, run.example).parameters
    assert isinstance(smaller.embedding, nn.Sequential) and smaller.embedding[0].padding_idx == 0
    for layer in smaller.encoder.layers:
        assert isinstance(layer.self_attn, Attention)
        projections = [getattr(layer.self_attn, f"{name}_proj") for name in ("q", "k", "v", "out")]
        assert all(isinstance(projection, nn.Sequential) for projection in projections)
    assert "embedding (rank" in said[0] and "encoder.layers.1.self_attn.v_proj (rank" in said[0]
    save(smaller, tmp_path / "model", factory=FACTORY, params=SIZE)
    loaded = load(tmp_path / "model", factory=FACTORY)
    arguments, keywords = run.example
    with torch.no_grad():
        expected = smaller(*arguments, **keywords)
        assert torch.equal(loaded(*arguments, **keywords), expected)
    Onnx().export(smaller, tmp_path, run.example)
    torch.testing.assert_close(Onnx().load(tmp_path, threads=1)(*arguments, **keywords), expected, rtol=1e-4, atol=1e-4)


def test_projections_of_low_rank_leave_the_network_as_it_was():
    run, model = text_run(), text_net()
    for layer in model.encoder.layers:
        for weight in (*layer.self_attn.in_proj_weight.detach().chunk(3), layer.self_attn.out_proj.weight.detach()):
            weight.copy_(random(32, 4) @ random(4, 32, seed=1) / 16)
    skip = ("embedding", "head", "*.linear1", "*.linear2")
    smaller = apply_techniques(model, [Factorize(energy=1 - 1e-9, skip=skip)], run)
    assert all(isinstance(layer.self_attn.q_proj, nn.Sequential) for layer in smaller.encoder.layers)
    arguments, _ = run.example
    for mode in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(
                smaller.train(mode)(*arguments), model.train(mode)(*arguments), rtol=1e-3, atol=1e-4
            )


def test_attention_of_which_nothing_is_replaced_comes_back_as_it_was():
    model = make("transformer")
    before = {path: module for path, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    opened = open_attention(model)
    assert all(isinstance(model.get_submodule(path), Attention) for path in before)
    opened.close(model)
    assert all(model.get_submodule(path) is module for path, module in before.items())
    assert all(layer.activation_relu_or_gelu == 1 for layer in model.encoder.layers)


@pytest.mark.parametrize("skip", ["encoder.layers.0.self_attn", "encoder.layers.0.self_attn.*_proj"])
def test_skipped_attention_stays(skip):
    model = with_falling_spectra(make("transformer"))
    found = apply_techniques(model, [Factorize(ratio=0.5, skip=(skip, "embed", "head"))], make_run())
    assert type(found.encoder.layers[0].self_attn) is nn.MultiheadAttention
    assert type(found.encoder.layers[1].self_attn) is Attention


def test_attention_that_cannot_be_taken_apart_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys = nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True)
            self.hooked = nn.MultiheadAttention(8, 2, batch_first=True)
            self.twice = nn.MultiheadAttention(8, 2, batch_first=True)
            self.again = self.twice
            self.held = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, image):
            x = image.squeeze(1)
            for module in (self.keys, self.hooked, self.twice, self.again, self.held):
                x = module(x, x, x)[0]
            return x

    model = Net()
    model.hooked.register_forward_hook(lambda module, inputs, output: None)
    hold_zeros(model.held, "in_proj_weight")
    said = []
    found = Factorize(ratio=0.9).apply(model, make_run(teller=said.append))
    for name in ("keys", "hooked", "twice"):
        assert isinstance(getattr(found, name), nn.MultiheadAttention)
        assert name in said[0].split("MultiheadAttention is not factorized: ")[1].split(";")[0]
    assert "has removed weights: held.q_proj, held.k_proj, held.v_proj" in said[0]
