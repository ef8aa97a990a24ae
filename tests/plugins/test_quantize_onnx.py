"""Quantized networks in onnxruntime: integer kernels, and the same numbers as in torch."""

from __future__ import annotations

import logging
import warnings
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from compress_quantize import Quantize
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from tests.plugins.test_quantize import trained
from tests.support import ConvNet, digits, make_run


class Mixed(nn.Module):
    """Pools, a concatenation, a clipped rectifier and a dropout."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.clip, self.pool = nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2)
        self.join = nn.Conv2d(16, 8, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, image):
        x = self.pool(self.clip(self.norm(self.first(image))))
        x = torch.cat([x, F.relu(self.second(x))], 1)
        return self.head(F.avg_pool2d(F.relu(self.join(x)), 2))


def exported(model, image, folder):
    """The operators that onnxruntime runs, those of the file, and a function that runs it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    path, optimized = str(folder / "model.onnx"), str(folder / "optimized.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (image[:2],),
            path,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = optimized
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    operators = [Counter(node.op_type for node in onnx.load(file).graph.node) for file in (optimized, path)]
    return *operators, lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.parametrize("kind", ["residual", "mixed", "plain"])
def test_onnxruntime_computes_every_layer_and_sum_in_integers(kind, tmp_path):
    torch.manual_seed(0)
    model = {"residual": lambda: trained("conv"), "mixed": Mixed, "plain": lambda: trained("mlp")}[kind]()
    small = apply_techniques(model, [Quantize()], make_run())
    image = digits().test.take(torch.arange(450))["image"]
    fused, written, runs = exported(small, image, tmp_path)
    assert not {"Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "Concat"} & set(fused)
    expected = {
        "residual": {"QLinearConv": 6, "QLinearAdd": 2, "QGemm": 1},
        "mixed": {"QLinearConv": 3, "QLinearConcat": 1, "QLinearAveragePool": 1, "QGemm": 2},
        "plain": {"QGemm": 3},
    }[kind]
    assert {name: fused[name] for name in expected} == expected
    assert written["QuantizeLinear"] > 0
    off = (runs(image) - small(image)).abs().amax(1)
    assert (off > 1e-5).float().mean() < 0.02, "only where a value lies half way between two integers"
    assert off.max() < 0.1
    assert torch.equal(runs(image[:1]), runs(image)[:1])


def test_the_weights_of_the_file_are_int8_and_the_biases_int32(tmp_path):
    small = apply_techniques(ConvNet(), [Quantize()], make_run())
    exported(small, digits().test.take(torch.arange(2))["image"], tmp_path)
    kinds = {entry.name: entry.data_type for entry in onnx.load(tmp_path / "model.onnx").graph.initializer}
    weights = {kind for name, kind in kinds.items() if name.endswith(".weight")}
    biases = {kind for name, kind in kinds.items() if name.endswith(".bias")}
    assert (weights, biases) == ({onnx.TensorProto.INT8}, {onnx.TensorProto.INT32})
    assert len([name for name in kinds if name.endswith(".weight")]) == 7
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].name == "image"
