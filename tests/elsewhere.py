"""Another device than the processor, for machines without one: tensors that have a place and no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda:0")


class _NoDoubles(TorchDispatchMode):
    """Fails where a float64 tensor is made off the processor, which some devices cannot hold."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
                assert leaf.dtype != torch.float64, f"{func} makes float64 on {leaf.device}"
        return found


@contextmanager
def elsewhere(module: nn.Module) -> Iterator[None]:
    """Hold a module on another device, without values, and forbid float64 there."""
    mode = FakeTensorMode()
    module.to("meta")
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(FakeTensor(mode, parameter.detach(), DEVICE))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = FakeTensor(mode, buffer, DEVICE)
    with mode, _NoDoubles():
        yield
