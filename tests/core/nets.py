"""Networks with what is hard to save, as a user might write them."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """One weight under two names, and one module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.one = nn.Linear(4, 4)
        self.two = self.one

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.embed(index))))


class Attribute(nn.Module):
    """A plain attribute decides the computation."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor
        self.shape = (1, 2)
        self.inner = nn.Linear(3, 3)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("passing", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor + self.passing


def drawn() -> tuple[float, float, float]:
    """A number from each of the generators that a user's code may use."""
    return float(torch.rand(())), float(np.random.rand()), random.random()


class Drawn(nn.Module):
    """Its weights come from three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = drawn()


class Frozen(nn.Module):
    """A stem that does not train, as a factory with learned weights gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)
        self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu())


class Keeper(nn.Module):
    """Keeps what its factory was given."""

    def __init__(self, value: object = None) -> None:
        super().__init__()
        self.value = value
        self.inner = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Nested(nn.Module):
    """Children within children, by name and in lists."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"a": nn.Conv2d(1, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1)})
        self.extra = nn.ModuleList([nn.Identity(), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block["b"](self.block["a"](x)).mean((2, 3))
        for module in self.extra:
            x = module(x)
        return self.head(x)


class Own(nn.Module):
    """A type that no plugin registers."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def pair() -> nn.Module:
    from tests.support import make

    return nn.Sequential(make("mlp"), Attribute(), Attribute())


def fails() -> nn.Module:
    raise ValueError("no such file")


def returns_text() -> str:
    return "network"
