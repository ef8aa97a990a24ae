"""The promises that users of a technique rely on, one function each.

A promise is kept (None), or refused by the technique or the recipe's check (a `Refusal`), or broken
(a `ConformanceError` is raised).
"""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from torch import Tensor, nn

from compress_core.artifact import origins, trusting
from compress_core.masks import masked_tensors
from compress_core.parts import Change, Exporter, Technique, TrainingTechnique
from compress_core.recipe import validated
from compress_core.testing.digits import Epochs
from compress_core.testing.elsewhere import hashes, hashes_elsewhere
from compress_core.testing.nets import make_net
from compress_core.testing.report import ConformanceError, Refusal, attempt
from compress_core.testing.subject import (
    Snapshot,
    Subject,
    outputs,
    round_trip,
    take_step,
    with_training,
    written,
)

PREFERRED = ("conv",)
"""The network on which techniques are composed and exported, if the technique accepts it."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def parameters(kind: type[Technique]) -> None:
    """Names, documentation, an example, and the way through a recipe."""
    if not NAME.fullmatch(kind.name):
        raise ConformanceError(f"a recipe cannot name {kind.name!r}", mend="use a-z, 0-9, '-' and '_'")
    if not inspect.cleandoc(kind.__dict__.get("__doc__") or ""):
        raise ConformanceError("the class has no docstring", mend="say in a sentence what it does to a network")
    for name, field in kind.model_fields.items():
        if not (field.description or "").strip():
            raise ConformanceError(f"the field {name!r} has no documentation", mend="write a docstring below the field")
        if hasattr(TrainingTechnique, name):
            raise ConformanceError(f"the field {name!r} hides a method of that name", mend="call the field otherwise")
    config = kind.model_config
    if not config.get("frozen") or config.get("extra") != "forbid":
        raise ConformanceError(
            "a recipe's mistakes would pass unseen, or its parameters could change while it runs",
            mend="keep `frozen=True` and `extra='forbid'` of Technique in model_config",
        )
    if kind.__private_attributes__:
        raise ConformanceError(
            f"it keeps state in {sorted(kind.__private_attributes__)[0]!r}",
            mend="a technique has no state: return it from `begin` as an nn.Module",
        )
    try:
        technique = kind(**kind.example)
    except Exception as error:
        raise ConformanceError(
            f"the example makes no instance: {error}", mend="set the class attribute `example` to parameters that work"
        ) from error
    values = technique.model_dump(mode="json", exclude_unset=True)
    try:
        same = _through_yaml(values, kind) == technique
    except ValidationError:
        same = False
    if not same:
        raise ConformanceError(
            "the parameters come back from YAML as others", mend="use numbers, strings, booleans, lists and mappings"
        )
    if not technique.changes:
        raise ConformanceError("`changes` is empty", mend="say what it changes; WEIGHTS is the default")


def _through_yaml(values: dict[str, Any], kind: type[Technique]) -> BaseModel:
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(values, stream)
    return validated(kind, YAML(typ="safe", pure=True).load(stream.getvalue()))


def imports(package: str) -> None:
    """A recipe is checked in a moment, so a plugin's package does not import torch."""
    program = f"import sys; sys.path[:] = {sys.path!r}; import {package}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConformanceError(
            f"{package} cannot be imported by itself: {done.stderr.strip().splitlines()[-1]}", mend="mend that import"
        )
    if done.stdout.strip() != "False":
        raise ConformanceError(
            f"importing {package} imports torch", mend="import torch inside the methods, or below `if TYPE_CHECKING:`"
        )


def runs(subject: Subject, net: str) -> Refusal | None:
    """It works on a network as it declares, and says what it did."""
    result = subject.on(net)
    if isinstance(result, Refusal):
        return result
    technique = subject.technique
    before, after = Snapshot.of(make_net(net).eval()), Snapshot.of(result)
    if before.architecture != after.architecture and not technique.changes & {Change.ARCHITECTURE, Change.NUMBERS}:
        raise ConformanceError(
            "it changes modules or shapes, and `changes` has neither ARCHITECTURE nor NUMBERS",
            mend="declare it in `changes`: the order of a step rests on it",
        )
    if technique.changes != {Change.TRAINING}:
        notes = [text for text in subject.notes[net] if text.startswith(f"{technique.name}:")]
        if not notes:
            raise ConformanceError(
                "it does not say what it did", mend=f'call run.say("{technique.name}: …") once, with counts'
            )
        if not before.difference(result) and not any("nothing changed" in text for text in notes):
            raise ConformanceError(
                "it changed nothing and does not say so", mend=f'run.say("{technique.name}: …, nothing changed")'
            )
    return None


def repeats(subject: Subject, net: str, nets: tuple[str, ...]) -> Refusal | None:
    """The same seed makes the same bytes, whatever random numbers were drawn before, and in another process too.

    The other process is asked for one of the networks.
    """
    result = subject.on(net)
    if isinstance(result, Refusal):
        return result
    with tempfile.TemporaryDirectory() as folder:
        first = written(result, net, Path(folder) / "first")
        torch.rand(3)
        second = written(subject.again(net), net, Path(folder) / "second")
    if first != second:
        raise ConformanceError(
            "the same seed makes other bytes", mend="draw random numbers from torch.Generator().manual_seed(run.seed)"
        )
    if net == subject.accepted(PREFERRED, nets):
        there = hashes_elsewhere(subject.technique, net)
        if there is not None and there != hashes(first):
            raise ConformanceError(
                "the same seed makes other bytes in another process",
                mend="sort what comes from sets: their order is another one in every process",
            )
    return None


def survives(subject: Subject, net: str) -> Refusal | None:
    """The result comes back from disk with the same outputs."""
    result = subject.on(net)
    if isinstance(result, Refusal):
        return result
    loaded = round_trip(result, net)
    if masked_tensors(loaded) != masked_tensors(result):
        raise ConformanceError("the masked tensors do not come back", mend="mark them with masks.hold_zeros")
    return None


def trains_on(subject: Subject, net: str) -> Refusal | None:
    """The result, as it comes back from disk, trains on and keeps its zeros, or training is refused."""
    result = subject.on(net)
    if isinstance(result, Refusal):
        return result
    loaded = round_trip(result, net)
    zeros = {name: loaded.get_parameter(name) == 0 for name in masked_tensors(loaded)}
    trained = attempt(lambda: take_step(loaded, [Epochs()], teacher=net, numbers_from=subject.leaves_numbers))
    if isinstance(trained, Refusal):
        return trained
    if lost := [name for name, zero in zeros.items() if bool((trained.get_parameter(name)[zero] != 0).any())]:
        raise ConformanceError(f"removed weights of {lost[0]!r} come back", mend="mark them with masks.hold_zeros")
    pairs = zip(loaded.parameters(), trained.parameters(), strict=True)
    if all(torch.equal(one, other) for one, other in pairs):
        raise ConformanceError(
            "training the result changes nothing and raises no error",
            mend="keep the parameters trainable, or declare NUMBERS in `changes`",
        )
    return None


def exports(subject: Subject, nets: tuple[str, ...], kind: type[Exporter]) -> Refusal | None:
    """An exported result gives the same outputs in its runtime, for another batch size too."""
    net = subject.accepted(PREFERRED, nets)
    if net is None:
        return Refusal("it accepts none of the networks", "run the kit with `export=False`")
    result = subject.on(net)
    assert isinstance(result, nn.Module)
    exporter = kind()
    with tempfile.TemporaryDirectory() as folder:

        def exported() -> Tensor:
            place = Path(folder) / "file"
            place.mkdir()
            image = torch.zeros(2, 1, 8, 8)
            exporter.export(result, place, ((image,), {}))
            with trusting(origins(result)):
                return outputs(exporter.load(place, 1))

        found = attempt(exported)
    if isinstance(found, Refusal):
        return found
    wanted = outputs(result)
    share = 0.05 if Change.NUMBERS in subject.technique.changes else 1e-3
    error, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    if error > share * largest:
        raise ConformanceError(
            f"the exported file differs by {error:.2g} where the largest output is {largest:.2g}",
            mend=f"use operations that {exporter.name!r} can represent",
        )
    return None


def composes_after(subject: Subject, earlier: Subject, nets: tuple[str, ...]) -> Refusal | None:
    """One technique works on what another has made, in two steps."""
    net = earlier.accepted(PREFERRED, nets)
    if net is None:
        return Refusal(f"{earlier.technique.name!r} accepts none of the networks", "name one that it accepts in `nets`")
    made = earlier.on(net)
    assert isinstance(made, nn.Module)
    try:
        result = attempt(lambda: take_step(made, subject.company, teacher=net, numbers_from=earlier.leaves_numbers))
        return _kept(result, net)
    except ConformanceError as error:
        raise _of_both(error, f"{earlier.technique.name}, then {subject.technique.name}") from error.__cause__


def composes_with(subject: Subject, other: Subject, nets: tuple[str, ...]) -> Refusal | None:
    """Two techniques share one step."""
    net = subject.accepted(PREFERRED, nets)
    if net is None:
        return Refusal("it accepts none of the networks", "name one that it accepts in `nets`")
    both = with_training([subject.technique, other.technique])
    try:
        result = attempt(lambda: take_step(make_net(net), both, teacher=net))
        return _kept(result, net)
    except ConformanceError as error:
        raise _of_both(error, f"{subject.technique.name} with {other.technique.name}") from error.__cause__


def _kept(result: nn.Module | Refusal, net: str) -> Refusal | None:
    """The refusal, or nothing if the network that two techniques made comes back from disk."""
    if isinstance(result, Refusal):
        return result
    round_trip(result, net)
    return None


def _of_both(error: ConformanceError, which: str) -> ConformanceError:
    return ConformanceError(f"{which}: {error.what}", mend=error.mend)
