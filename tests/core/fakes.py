"""A plugin with one part of every kind, small enough to see through; and recipes that use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from compress_core import hookimpl
from compress_core.catalog import Catalog, read_catalog
from compress_core.parts import Change, Criterion, DataSource, Exporter, Technique, TrainingTechnique
from tests.support import Classification, digits


class Cut(Technique):
    """Halves the weights; so simple that its result is known."""

    name = "cut"
    share: float = Field(0.5, gt=0, lt=1)
    scope: str = "tensor"

    def apply(self, model, run):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(self.share)
        return model


class Shape(Technique):
    """Stands for a change of the architecture."""

    name = "shape"

    @property
    def changes(self):
        return frozenset({Change.ARCHITECTURE})

    def apply(self, model, run):
        return model


class Integers(Technique):
    """Stands for a change of the format of the numbers."""

    name = "integers"

    @property
    def changes(self):
        return frozenset({Change.NUMBERS, Change.WEIGHTS})

    def apply(self, model, run):
        return model


class Codes(Integers):
    """A second one that decides the numbers."""

    name = "codes"


class Reopen(Technique):
    """Undoes a change of the numbers."""

    name = "reopen"
    reopens_numbers = True

    def apply(self, model, run):
        return model


class Learn(TrainingTechnique):
    """Trains, and nothing else."""

    name = "learn"
    epochs: int = Field(1, ge=1, le=100)
    rate: float = Field(1e-2, gt=0)

    @property
    def changes(self):
        return frozenset({Change.TRAINING})

    @property
    def brings_epochs(self):
        return True

    def plan(self, plan, run):
        return replace(plan, epochs=self.epochs, optimizer=lambda groups: torch.optim.Adam(groups, lr=self.rate))


class Mimic(TrainingTechnique):
    """Needs a teacher and epochs."""

    name = "mimic"
    needs_teacher = True
    needs_epochs = True

    @property
    def changes(self):
        return frozenset({Change.TRAINING})


class Join(Shape):
    """Stands for a technique whose result holds its teacher."""

    name = "join"
    needs_teacher = True
    keeps_teacher = True


class Digits(DataSource):
    """The digits, and whatever files and imports it is told to name."""

    name = "fake-digits"
    read: tuple[Path, ...] = ()
    code: tuple[str, ...] = ()

    def splits(self, seed: int) -> Any:
        return digits()

    def files(self) -> tuple[Path, ...]:
        return self.read

    def imports(self) -> tuple[str, ...]:
        return self.code


class Text(Exporter):
    """Writes nothing of use."""

    name = "text"

    def export(self, model, folder, example):
        (folder / "model.txt").write_text("model")

    def load(self, folder, threads):
        raise NotImplementedError


@hookimpl
def register_techniques() -> Iterable[type[Technique]]:
    return [Cut, Shape, Integers, Codes, Reopen, Learn, Mimic, Join]


class Last(Criterion):
    """The last weights matter most."""

    name = "last"

    def weight_scores(self, name, weight, state):
        return torch.arange(weight.numel(), dtype=torch.float32).reshape(weight.shape)


@hookimpl
def register_criteria() -> Iterable[type[Criterion]]:
    return [Last]


@hookimpl
def register_data_sources() -> Iterable[type[DataSource]]:
    return [Digits]


@hookimpl
def register_tasks() -> list[type]:
    return [Classification]


@hookimpl
def register_exporters() -> Iterable[type[Exporter]]:
    return [Text]


def point(name: str, value: str) -> EntryPoint:
    """An entry point as an installed distribution would have it."""
    return EntryPoint(name=name, value=value, group="compress")


def fake_catalog(*more: EntryPoint) -> Catalog:
    """The catalog of an environment with this plugin, and perhaps others."""
    return read_catalog([point("fake", "tests.core.fakes"), *more])


RECIPE = """\
seed: 0
threads: 2
device: cpu
precision: float32
reference: baseline
data:
  source: fake-digits
model:
  factory: tests.support:MLP
task:
  name: test-classification
pipeline:
  baseline:
    input: none
    teacher: none
    use:
      learn: {epochs: 2}
  cut:
    input: baseline
    teacher: none
    use:
      cut: {share: 0.25}
"""
"""A recipe that is right; tests break one thing in it."""
