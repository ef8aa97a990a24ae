"""Free axes, the versions of operators, and what the manifest says of an exported file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from compress_export import Onnx, OpenVino, TorchProgram
from compress_export.conversion import check_opset
from compress_zoo import TextTransformer
from pydantic import ValidationError
from torch import nn

from compress_core.data import Splits
from compress_core.errors import ModelError
from compress_core.stage import export_model
from tests.support import digits, make, make_run

FORMATS = (Onnx, OpenVino, TorchProgram)


def texts(rows, words):
    generator = torch.Generator().manual_seed(rows * words)
    ids = torch.randint(1, 50, (rows, words), generator=generator)
    mask = torch.arange(words) < torch.randint(1, words + 1, (rows, 1), generator=generator)
    return ids * mask, mask


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return TextTransformer(vocabulary=50, length=12, width=16, layers=1, heads=2).eval()


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_texts_of_any_length_up_to_the_limit_go_through_one_file(reader, tmp_path, kind):
    about = kind(dynamic=[1]).export(reader, tmp_path, (texts(2, 12), {}))
    assert about == {
        "inputs": [
            {"name": "ids", "dtype": "int64", "shape": ["batch", "axis_1"]},
            {"name": "mask", "dtype": "bool", "shape": ["batch", "axis_1"]},
        ],
        "outputs": [{"name": "output", "dtype": "float32", "shape": ["batch", 2]}],
        "limits": {"axis_1": 12},
    }
    call = kind().load(tmp_path, threads=1)
    for rows, words in ((1, 12), (3, 5), (5, 1)):
        ids, mask = texts(rows, words)
        with torch.no_grad():
            torch.testing.assert_close(call(ids, mask), reader(ids, mask), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="has 13 along axis_1, and the network takes at most 12"):
        call(*texts(2, 13))


def test_without_a_wish_only_the_batch_is_free(reader, tmp_path):
    about = Onnx().export(reader, tmp_path, (texts(2, 12), {}))
    assert [entry["shape"] for entry in about["inputs"]] == [["batch", 12], ["batch", 12]]
    with pytest.raises(ModelError, match="cannot run it"):
        Onnx().load(tmp_path, 1)(*texts(2, 5))


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_a_network_that_needs_the_axis_as_it_is_is_refused(tmp_path, kind):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ModelError, match="one size of an axis of `dynamic` only"):
        kind(dynamic=[1]).export(model, tmp_path, ((torch.rand(2, 3, 4),), {}))
    with pytest.raises(ModelError, match="no input has an axis 3"):
        kind(dynamic=[3]).export(model, tmp_path, ((torch.rand(2, 3, 4),), {}))


@pytest.mark.parametrize("axes", [[0], [1, 1], [-1]])
def test_axes_that_make_no_sense_are_refused(axes):
    with pytest.raises(ValidationError, match="counted from 1"):
        Onnx(dynamic=axes)


def test_operators_of_another_version_than_asked_for_are_refused(tmp_path, monkeypatch):
    real = torch.onnx.export

    def deaf(*arguments, **keywords):
        return real(*arguments, **(keywords | {"opset_version": 18}))

    monkeypatch.setattr(torch.onnx, "export", deaf)
    with pytest.raises(ModelError, match="version 18 of ONNX's operators, not 21") as error:
        Onnx(opset=21).export(make("mlp"), tmp_path, ((torch.rand(2, 1, 8, 8),), {}))
    assert error.value.mend == "write `opset: 18`"
    check_opset(onnx.helper.make_model(onnx.GraphProto(), opset_imports=[onnx.helper.make_opsetid("", 21)]), 21)


def test_a_network_that_would_need_a_second_file_is_refused_before_it_is_translated(tmp_path, monkeypatch):
    monkeypatch.setattr("compress_export.conversion.LARGEST", 1_000)
    with pytest.raises(ModelError, match="an ONNX file holds at most 1,000"):
        Onnx().export(make("mlp"), tmp_path, ((torch.rand(2, 1, 8, 8),), {}))
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_what_a_stranger_needs_to_run_the_file(tmp_path):
    splits = digits()
    about = {"normalization": {"mean": [0.25], "std": [0.5]}, "classes": list("0123456789"), "vocabulary": ["x"]}
    run = replace(make_run(), splits=Splits(splits.train, splits.validation, splits.test, about))
    model = make("conv").eval()
    export_model(model, Onnx(), tmp_path / "out", run, {})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert manifest["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}]
    assert manifest["data"] == {"normalization": {"mean": [0.25], "std": [0.5]}, "classes": list("0123456789")}

    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")  # as docs/techniques.md does
    (entry,) = manifest["inputs"]
    pixels = np.random.default_rng(0).random((4, *entry["shape"][1:]), np.float32)
    scale = manifest["data"]["normalization"]
    mean, std = (np.array(scale[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    (logits,) = session.run(None, {entry["name"]: ((pixels - mean) / std).astype(entry["dtype"])})
    with torch.no_grad():
        wanted = model((torch.from_numpy(pixels) - 0.25) / 0.5)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_an_exporter_that_says_nothing_of_its_files_is_welcome(tmp_path):
    class Silent(Onnx):
        name = "silent"

        def export(self, model, folder, example):
            super().export(model, folder, example)

    export_model(make("mlp"), Silent(), tmp_path / "out", make_run(), {"step": "x"})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest) == {"exporter", "files", "format", "kind", "provenance"}
