"""The zoo: published counts, shapes, names of weights, and networks that can be traced, saved and trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import compress_zoo
import pytest
import torch
from compress_data import Digits
from compress_tasks import Classification
from compress_zoo import PadShortcut, TextTransformer
from torch import nn
from torch.nn import functional as F

from compress_core.artifact import load, save
from compress_core.catalog import catalog
from compress_core.factory import build_model
from compress_core.measure import counts
from compress_core.run import Run

PUBLISHED = {
    "LeNet300100": 266_610,
    "LeNet5": 431_080,
    "ResNet20": 269_722,
    "ResNet32": 464_154,
    "ResNet44": 658_586,
    "ResNet56": 853_018,
    "ResNet110": 1_727_962,
    "ConvNet": 306_122,
    "SmallConvNet": 19_562,
    "MLP": 50_826,
}
SHAPES = {"LeNet300100": (1, 28, 28), "LeNet5": (1, 28, 28), "ConvNet": (1, 8, 8), "SmallConvNet": (1, 8, 8)}
DIGITS = ("MLP", "ConvNet", "SmallConvNet")


def build(name, **params):
    return build_model(f"compress_zoo:{name}", params).eval()


def image(name, examples=2):
    shape = (1, 8, 8) if name == "MLP" else SHAPES.get(name, (3, 32, 32))
    return torch.randn(examples, *shape, generator=torch.Generator().manual_seed(0))


def text():
    ids = torch.randint(2, 100, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 20, dtype=torch.bool)
    ids[0, 5:], mask[0, 5:] = 0, False
    return ids, mask


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_it_has_the_published_number_of_parameters_and_one_logit_for_each_class(name, parameters):
    model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(image(name)).shape == (2, 10)
    assert build(name, classes=7)(image(name)).shape == (2, 7)


@pytest.mark.parametrize(("name", "millions"), [("ResNet20", 40.6), ("ResNet56", 125.5)])
def test_the_residual_networks_have_the_published_number_of_multiplications(name, millions):
    assert counts(build(name), ((image(name, 1),), {})).macs / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_traced_network_computes_the_same(name):
    model = build(name)
    assert torch.equal(torch.fx.symbolic_trace(model)(image(name)), model(image(name)))


@pytest.mark.parametrize("name", [*DIGITS, "LeNet5", "ResNet20", "TextTransformer"])
def test_it_survives_the_artifact_without_edits(name, tmp_path):
    model = build(name)
    save(model, tmp_path / "model", factory=f"compress_zoo:{name}")
    loaded = load(tmp_path / "model")
    inputs = text() if name == "TextTransformer" else (image(name),)
    assert torch.equal(loaded(*inputs), model(*inputs))
    assert '"edits": []' in (tmp_path / "model" / "manifest.json").read_text()


@pytest.mark.parametrize("name", DIGITS)
def test_it_learns_the_digits(name):
    splits = Digits().splits(0)
    run = Run(splits, Classification())
    small = {"ConvNet": {"widths": [8, 16]}}
    model = build(name, **small.get(name, {})).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(6):
        for chosen in torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(epoch)).split(64):
            batch = splits.train.take(chosen)
            loss = F.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert run.evaluate(model).value > 0.9


def test_more_blocks_and_widths_make_a_deeper_net_that_halves_the_image_at_each_stage():
    model = build("ConvNet", widths=[4, 8, 12], blocks=2, inputs=3, classes=5)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert model.stages(model.stem(torch.zeros(2, 3, 16, 16))).shape == (2, 12, 4, 4)
    assert [len(stage) for stage in model.stages] == [2, 2, 2]


def test_the_shortcut_takes_every_second_pixel_between_zeros():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    out = PadShortcut(2, 5, 2)(x)
    assert out.shape == (1, 5, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert out[:, [0, 3, 4]].abs().sum() == 0
    assert out[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]


def test_the_shortcut_can_stand_in_another_network_and_be_saved(tmp_path):
    assert catalog().modules["compress_zoo.resnet.PadShortcut"] is PadShortcut
    model = build("ConvNet", widths=[4, 8])
    model.stages[1][0].shortcut = PadShortcut(4, 8, 2)
    save(model, tmp_path / "model", factory="compress_zoo:ConvNet", params={"widths": [4, 8]})
    loaded = load(tmp_path / "model")
    assert isinstance(loaded.stages[1][0].shortcut, PadShortcut)
    assert torch.equal(loaded(image("ConvNet")), model(image("ConvNet")))


def test_what_stands_behind_the_mask_does_not_matter():
    model = build("TextTransformer")
    ids, mask = text()
    other = ids.clone()
    other[0, 5:] = 99
    for training in (False, True):
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.MultiheadAttention):
                module.eval()
        assert torch.allclose(model(ids, mask), model(other, mask), atol=1e-6)
        assert torch.allclose(model(ids, mask)[0], model(ids[:1, :5], mask[:1, :5])[0], atol=1e-6)
    assert not torch.allclose(model(ids, mask)[1], model(ids.flip(1), mask)[1], atol=1e-4)


def test_the_text_network_learns_which_of_two_words_comes_first():
    torch.manual_seed(0)
    ids = torch.randint(4, 20, (256, 8))
    first = torch.rand(256) < 0.5
    ids[:, 1], ids[:, 5] = torch.where(first, 2, 3), torch.where(first, 3, 2)
    mask = torch.ones_like(ids, dtype=torch.bool)
    model = TextTransformer(vocabulary=20, length=8, width=16, layers=1, heads=2, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(ids[:192], mask[:192]), first[:192].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = model.eval()(ids[192:], mask[192:]).argmax(1) == first[192:].long()
    assert right.float().mean() > 0.95


def test_the_package_imports_no_torch_and_lists_its_networks():
    code = "import sys, compress_zoo; assert 'torch' not in sys.modules; print(*dir(compress_zoo))"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {*compress_zoo.__all__, "register_modules"} <= set(listed)
    with pytest.raises(AttributeError, match="ResNet21"):
        compress_zoo.ResNet21  # noqa: B018


@pytest.mark.data
@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.skipif("COMPRESS_MODELS" not in os.environ, reason="COMPRESS_MODELS names no folder of published weights")
def test_the_published_weights_load_under_their_own_names_and_classify(depth):
    from compress_data import Parquet
    from safetensors.torch import load_file

    model = build(f"ResNet{depth}")
    model.load_state_dict(load_file(Path(os.environ["COMPRESS_MODELS"]) / f"resnet{depth}-cifar10.safetensors"))
    if "COMPRESS_DATA" not in os.environ:
        pytest.skip("COMPRESS_DATA names no folder of data sets")
    normalization = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    files = {"train": "test.parquet", "validation": "test.parquet", "test": "test.parquet"}
    source = Parquet(folder="cifar10", image="img", limit=400, test_limit=1, **files, **normalization)
    quality = Run(source.splits(0), Classification()).evaluate(model)
    assert quality.examples == 400
    assert 0.75 < quality.value < 0.9
