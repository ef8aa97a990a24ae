"""What the nodes of a `Graph` may call: the allow-list of functions, methods and attributes of tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "iadd": operator.iadd,
    "sub": operator.sub,
    "mul": operator.mul,
    "imul": operator.imul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "neg": operator.neg,
    "matmul": operator.matmul,
    "getitem": operator.getitem,
    "getattr": getattr,
    "torch.add": torch.add,
    "torch.sub": torch.sub,
    "torch.mul": torch.mul,
    "torch.div": torch.div,
    "torch.matmul": torch.matmul,
    "torch.cat": torch.cat,
    "torch.concat": torch.concat,
    "torch.stack": torch.stack,
    "torch.chunk": torch.chunk,
    "torch.split": torch.split,
    "torch.mean": torch.mean,
    "torch.sum": torch.sum,
    "torch.amax": torch.amax,
    "torch.flatten": torch.flatten,
    "torch.reshape": torch.reshape,
    "torch.transpose": torch.transpose,
    "torch.permute": torch.permute,
    "torch.squeeze": torch.squeeze,
    "torch.unsqueeze": torch.unsqueeze,
    "torch.relu": torch.relu,
    "torch.sigmoid": torch.sigmoid,
    "torch.tanh": torch.tanh,
    "torch.softmax": torch.softmax,
    "torch.clamp": torch.clamp,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "dropout": F.dropout,
    "pad": F.pad,
    "interpolate": F.interpolate,
    "avg_pool1d": F.avg_pool1d,
    "avg_pool2d": F.avg_pool2d,
    "avg_pool3d": F.avg_pool3d,
    "max_pool1d": F.max_pool1d,
    "max_pool2d": F.max_pool2d,
    "max_pool3d": F.max_pool3d,
    "adaptive_avg_pool1d": F.adaptive_avg_pool1d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d,
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
}
"""The functions that a graph may call, by the name that stands in its data."""

METHODS = frozenset(
    (
        "add",
        "add_",
        "sub",
        "mul",
        "mul_",
        "div",
        "matmul",
        "mean",
        "sum",
        "amax",
        "flatten",
        "reshape",
        "view",
        "transpose",
        "permute",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "relu",
        "relu_",
        "sigmoid",
        "tanh",
        "softmax",
        "clamp",
        "size",
        "dim",
        "chunk",
        "split",
        "expand",
        "repeat",
        "float",
        "to",
    )
)
"""The methods of tensors that a graph may call."""

ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})
"""The attributes of tensors that a graph may read."""
