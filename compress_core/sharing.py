"""Tensors that lie in the same memory without being one object; a file holds each of them by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the order of their elements, on the CPU; one that lies on another's memory is copied."""
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name, tensor in sorted(found.items(), key=lambda entry: entry[1].data_ptr()):
        start = tensor.data_ptr()
        if start < end:
            found[name] = tensor.clone()
        end = max(end, start + tensor.nbytes)
    return found


def overlap(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of two tensors with a common element, or None. Those that only take turns in a storage have none."""
    spans = sorted((_span(name, tensor) for name, tensor in tensors.items() if tensor.numel()), key=_Span.place)
    for index, span in enumerate(spans):
        for other in takewhile(span.reaches, spans[index + 1 :]):
            if _meet(tensors[span.name], tensors[other.name]):
                first, second = sorted((span.name, other.name))
                return first, second
    return None


@dataclass(frozen=True)
class _Span:
    """The bytes from a tensor's first element to its last."""

    device: str
    start: int
    end: int
    name: str

    def place(self) -> tuple[str, int]:
        return self.device, self.start

    def reaches(self, other: _Span) -> bool:
        return other.device == self.device and other.start < self.end


def _span(name: str, tensor: Tensor) -> _Span:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return _Span(str(tensor.device), start, start + (last + 1) * tensor.itemsize, name)


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have a byte in common."""
    import torch

    start = min(one.data_ptr(), other.data_ptr())
    end = max(_span("", one).end, _span("", other).end)
    touched = torch.zeros(end - start, dtype=torch.bool)
    _bytes_of(one, touched, start).fill_(True)
    return bool(_bytes_of(other, touched, start).any())


def _bytes_of(tensor: Tensor, memory: Tensor, start: int) -> Tensor:
    """The bytes of a tensor in a picture of the memory from `start`; a repeated element once."""
    shape = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    strides = [stride * tensor.itemsize for stride in tensor.stride()]
    return memory.as_strided((*shape, tensor.itemsize), (*strides, 1), tensor.data_ptr() - start)
