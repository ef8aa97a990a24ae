"""Hints: a student's layer learns to give what a layer of its teacher gives.

    H = mean (u - r(v))^2

u is the output of the teacher's layer (the hint), v that of the student's (the guided layer), r a regressor that
maps v's channels to u's: a linear map along the channel axis, which for images is a 1x1 convolution. r is learned
with the student and thrown away. Several pairs are averaged.

Source: Romero et al. 2015, FitNets: Hints for Thin Deep Nets, eq. 3 (there half the sum, here the mean; and there
before the soft targets, here together with them). Layers must agree in every axis but that of the channels.
Cost: nothing beyond the teacher's forward, and the regressor's `channels(student) x channels(teacher)` weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from compress_core.errors import ModelError
from compress_core.run import named_module


class Regressor(nn.Module):
    """A linear map along one axis: `(..., inputs, ...) -> (..., outputs, ...)`."""

    def __init__(self, inputs: int, outputs: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, feature: Tensor) -> Tensor:
        """Map the channels."""
        mapped: Tensor = self.linear(feature.movedim(self.axis, -1))
        return mapped.movedim(-1, self.axis)


class Hints(nn.Module):
    """The state of one training: the regressors, and the hooks that catch both networks' features."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Mapping[str, str]) -> None:
        super().__init__()
        self.pairs = dict(pairs)
        self.regressors = nn.ModuleList()
        self.guided: dict[str, Tensor] = {}
        self.hinted: dict[str, Tensor] = {}
        self.handles: list[RemovableHandle] = []
        for guided, hint in self.pairs.items():
            self.handles += [
                named_module(student, guided).register_forward_hook(_catcher(self.guided, guided, learning=True)),
                named_module(teacher, hint).register_forward_hook(_catcher(self.hinted, hint, learning=False)),
            ]

    def add_regressors(self, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
        """Make the regressors for features of these shapes, by the names of the layers.

        Raises:
            ModelError: two layers do not fit.
        """
        for guided, hint in self.pairs.items():
            here, there = tensor_of(student[guided], guided), tensor_of(teacher[hint], hint)
            axis = channel_axis(here, there, guided, hint)
            self.regressors.append(Regressor(here.shape[axis], there.shape[axis], axis))

    def loss(self) -> Tensor:
        """The mean squared error of the features of the last forward passes."""
        terms = [
            F.mse_loss(regressor(self.guided.pop(guided)).float(), self.hinted[hint].float())
            for regressor, (guided, hint) in zip(self.regressors, self.pairs.items(), strict=True)
        ]
        self.hinted.clear()
        return torch.stack(terms).mean()

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def tensor_of(feature: Any, name: str) -> Tensor:
    """A module's output, or the first part of it if it gives several.

    Raises:
        ModelError: it gives no tensor with channels.
    """
    found = feature[0] if isinstance(feature, tuple | list) and feature else feature
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 2:
        raise ModelError(f"the module {name!r} gives no tensor with channels", mend="name a layer within it")
    return found


def channel_axis(student: Tensor, teacher: Tensor, guided: str, hint: str) -> int:
    """The axis of the channels: the one in which two features may differ.

    That is axis 1 of images `(batch, channels, ...)`, and the last axis of sequences `(batch, length, channels)`,
    unless only the other one makes the rest agree.

    Raises:
        ModelError: the features differ in other axes.
    """
    last = student.ndim - 1
    if student.ndim == teacher.ndim:
        for axis in (1, last) if student.ndim > 3 else (last, 1):
            rest = [index for index in range(student.ndim) if index != axis]
            if all(student.shape[index] == teacher.shape[index] for index in rest):
                return axis
    raise ModelError(
        f"the student's {guided!r} gives {tuple(student.shape)} where the teacher's {hint!r} gives "
        f"{tuple(teacher.shape)}: they differ in more than their channels",
        mend="name two layers of the same resolution or length",
    )


def _catcher(store: dict[str, Tensor], name: str, *, learning: bool) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps the feature; with `learning` only while gradients are recorded, so not in an evaluation."""

    def catch(module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled() or not learning:
            store[name] = tensor_of(output, name)

    return catch
