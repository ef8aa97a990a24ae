"""The integer weights of matrix products, laid as onnxruntime's integer kernels take them.

A linear layer over more than two axes is written as `MatMul(x, Transpose(DequantizeLinear(weight)))`, whose Transpose
onnxruntime joins with the product before it looks for integers: the whole then computes in floating point. The weight
is therefore written transposed, (in, out), with its scales along axis 1, and the Transpose goes. The numbers stay.

Only where the other factor is rounded too: from integers beside real numbers onnxruntime makes `MatMulNBits`, which
rounds those numbers unasked.
"""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import numpy_helper


def transpose_integer_weights(graph: onnx.GraphProto) -> int:
    """Write the integer weights of products transposed, in place; counts them.

    Only a matrix goes that nothing else reads, neither as integers nor as real numbers.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    products = Counter(node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[0] in makers)
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    gone = []
    for node in graph.node:
        turned = node.op_type == "Transpose" and products[node.output[0]] == uses[node.output[0]]
        real = makers.get(node.input[0]) if turned else None
        weight = initializers.get(real.input[0]) if real else None
        if real is None or weight is None or len(weight.dims) != 2 or not _of_rows(real):
            continue
        if uses[real.input[0]] > 1 or uses[real.output[0]] > 1:
            continue
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))
        del real.attribute[:]
        real.attribute.append(onnx.helper.make_attribute("axis", 1))
        real.output[0] = node.output[0]
        gone.append(node)
    for node in gone:
        graph.node.remove(node)
    return len(gone)


def _of_rows(node: onnx.NodeProto) -> bool:
    """Whether a DequantizeLinear has one scale a row and nothing else to say."""
    return [(entry.name, entry.i) for entry in node.attribute] == [("axis", 0)]
