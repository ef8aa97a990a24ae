"""Integer weights of matrix products are written as the integer kernels take them, and the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from compress_export.products import transpose_integer_weights
from onnx import TensorProto, helper, numpy_helper


def model(extra_reader=None, axis=0, rounded=True):
    """x (3, 4), rounded or not, times the transposed integers (5, 4), one scale a row."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (5, 4), dtype=np.int8)
    scale = generator.uniform(0.01, 0.1, (5, 4)[axis]).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["real"], axis=axis),
        helper.make_node("Transpose", ["real"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x'" if rounded else "x", "turned"], ["y"]),
    ]
    if rounded:
        nodes[:0] = [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["integers"]),
            helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["x'"]),
        ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 5])]
    if extra_reader is not None:
        nodes.append(helper.make_node("Identity", [extra_reader], ["again"]))
        kind = TensorProto.INT8 if extra_reader == "weight" else TensorProto.FLOAT
        outputs.append(helper.make_tensor_value_info("again", kind, [5, 4]))
    tensors = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(scale, "scale")]
    if rounded:
        tensors.append(numpy_helper.from_array(np.float32(1 / 64), "step"))
        tensors.append(numpy_helper.from_array(np.uint8(128), "zero"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])]
    graph = helper.make_graph(nodes, "product", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)})[0]


def test_the_weight_is_turned_in_the_file_and_the_product_stays():
    proto = model()
    before = run(proto)
    assert transpose_integer_weights(proto.graph) == 1
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node][2:] == ["DequantizeLinear", "MatMul"]
    assert list(proto.graph.initializer[0].dims) == [4, 5]
    np.testing.assert_allclose(run(proto), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reader", ["weight", "real"])
def test_a_weight_that_something_else_reads_stays_as_it_is(reader):
    proto = model(reader)
    before = proto.SerializeToString(deterministic=True)
    assert transpose_integer_weights(proto.graph) == 0
    assert proto.SerializeToString(deterministic=True) == before


def test_a_weight_beside_real_numbers_stays_as_it_is():
    assert transpose_integer_weights(model(rounded=False).graph) == 0


def test_scales_along_the_other_axis_stay_as_they_are():
    assert transpose_integer_weights(model(axis=1).graph) == 0
