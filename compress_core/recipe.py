"""params.yaml: read, validated whole, and turned into a DAG of steps before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from compress_core.catalog import Catalog, catalog
from compress_core.errors import RecipeError, suggest
from compress_core.order import changes_numbers, check_together, ordered
from compress_core.parts import DataSource, Exporter, Part, Task, Technique

RESERVED = ("none", "data", "lock", "report")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
EXPORT = "export"
"""The key under `use:` that ends a chain with a file for a runtime."""

Precision = Literal["float32", "bfloat16", "float16"]
Checked = TypeVar("Checked", bound=BaseModel)
AnyPart = TypeVar("AnyPart", bound=Part)


class ModelSpec(BaseModel):
    """How a network is built."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """Import string of a class or function that returns the network, `package.module:attribute`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its keyword arguments."""


class Settings(BaseModel):
    """The fields of a recipe that are not parts. All must be written: DVC watches them by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = Field(ge=0, lt=2**32)
    """Decides everything random: initial weights, order of the examples, splits."""
    threads: int = Field(ge=1)
    """Threads of one step. Another number gives other sums, so other bytes: it is a parameter."""
    device: str = Field(pattern=r"^(cpu|mps|(cuda|xpu)(:\d+)?)$")
    """Where networks train: `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`."""
    precision: Precision
    """Number format of the training's forward and backward passes."""
    reference: str
    """The step with which everything is compared."""


class StepFields(BaseModel):
    """The fields of one step."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    input: str
    """The step whose network comes in, or `none` for a fresh one."""
    teacher: str
    """The step whose network teaches, or `none`."""
    use: dict[str, dict[str, Any] | None] = Field(min_length=1)
    """The techniques that share this step, each with its parameters."""
    model: ModelSpec | None = None
    """A fresh network for this step, other than the recipe's; with `input: none`."""


@dataclass(frozen=True)
class Step:
    """One stage of the DAG: an input network, techniques or an exporter, an output."""

    name: str
    input: str | None
    teacher: str | None
    techniques: tuple[Technique, ...]
    exporter: Exporter | None = None
    model: ModelSpec | None = None
    use: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps that must be done before this one."""
        return tuple(dict.fromkeys(name for name in (self.input, self.teacher) if name is not None))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that plugins provide for it."""
        own: tuple[Part, ...] = self.techniques if self.exporter is None else (self.exporter,)
        return (*own, *(part for entry in own for part in entry.parts))


@dataclass(frozen=True)
class Recipe:
    """A validated params.yaml; `steps` is in an order in which they can run."""

    path: Path
    settings: Settings
    data: DataSource
    model: ModelSpec
    task: Task
    steps: Mapping[str, Step]

    @property
    def seed(self) -> int:
        """Decides everything random."""
        return self.settings.seed

    @property
    def reference(self) -> Step:
        """The step with which everything is compared."""
        return self.steps[self.settings.reference]

    def step(self, name: str) -> Step:
        """A step by name.

        Raises:
            RecipeError: there is none.
        """
        if name not in self.steps:
            raise RecipeError(
                f"there is no step {name!r}", where=f"{self.path}, pipeline", mend=suggest(name, self.steps)
            )
        return self.steps[name]

    def lineage(self, name: str) -> Iterator[Step]:
        """A step and the steps whose network it received, nearest first."""
        step: Step | None = self.steps[name]
        while step is not None:
            yield step
            step = self.steps[step.input] if step.input is not None else None

    def model_of(self, name: str) -> ModelSpec:
        """The fresh network that a step's network grew from."""
        return list(self.lineage(name))[-1].model or self.model


def read_recipe(path: Path, plugins: Catalog | None = None) -> Recipe:
    """Read and validate a recipe whole.

    Raises:
        RecipeError: with file, line, step and field.
    """
    return _Reader(path, plugins or catalog()).recipe()


def validated(kind: type[Checked], values: Any) -> Checked:
    """Values from YAML as a pydantic model; unlike in Python, neither `true` nor `"1"` is a number.

    Raises:
        ValidationError: they do not fit.
    """
    return kind.model_validate_json(json.dumps(values), strict=True)


class _Reader:
    """Turns one file into a recipe; every complaint names the place in that file."""

    def __init__(self, path: Path, plugins: Catalog) -> None:
        self.path = path
        self.plugins = plugins
        self.document = self._load()

    def recipe(self) -> Recipe:
        sections = {"data", "model", "task", "pipeline"}
        known = [*sections, *Settings.model_fields]
        for key in self.document:
            if key not in known:
                raise self._error(f"unknown section {key!r}", (key,), suggest(str(key), known))
        for key in sorted(sections):
            if not isinstance(self.document.get(key), Mapping):
                missing = key not in self.document
                raise self._error(
                    f"the section {key!r} is missing" if missing else f"{key!r} must be a mapping",
                    () if missing else (key,),
                    f"write `{key}:` and, indented below it, its fields",
                )
        own = {key: value for key, value in self.document.items() if key not in sections}
        settings = self._check(Settings, own, ())
        data = self._part("data source", self.plugins.data_sources, ("data",), "source")
        task = self._part("task", self.plugins.tasks, ("task",), "name")
        model = self._check(ModelSpec, self.document["model"], ("model",))
        steps = self._sorted({name: self._step(name) for name in self._names()})
        recipe = Recipe(self.path, settings, data, model, task, steps)
        if settings.reference not in steps:
            raise self._error(
                f"the reference {settings.reference!r} is no step", ("reference",), suggest(settings.reference, steps)
            )
        self._check_chains(recipe)
        return recipe

    def _load(self) -> CommentedMap:
        try:
            document = YAML(typ="rt").load(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecipeError(
                "there is no recipe", where=str(self.path), mend="run it in a folder with a params.yaml"
            ) from None
        except MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise RecipeError(
                f"no YAML: {error.problem}",
                where=f"{self.path}{line}",
                mend="look at the indentation and the quotes there",
            ) from None
        except (YAMLError, UnicodeDecodeError, OSError) as error:
            raise RecipeError(f"no YAML: {error}", where=str(self.path)) from None
        if not isinstance(document, CommentedMap):
            raise RecipeError(
                "the recipe must be a mapping of sections",
                where=str(self.path),
                mend=f"it has the sections {', '.join([*Settings.model_fields, 'data', 'model', 'task', 'pipeline'])}",
            )
        return document

    def _error(self, what: str, place: tuple[Any, ...], mend: str = "") -> RecipeError:
        """An error at a path of keys, with the line of the deepest key that exists."""
        node: Any = self.document
        line = None
        for key in place:
            if not isinstance(node, Mapping) or key not in node:
                break
            line = _line(node, key) or line
            node = node[key]
        where = f"{self.path}, line {line}" if line is not None else str(self.path)
        return RecipeError(what, where=", ".join([where, ".".join(map(str, place))] if place else [where]), mend=mend)

    def _check(self, kind: type[Checked], values: Any, place: tuple[Any, ...]) -> Checked:
        """Validate values as a pydantic model; the first mistake becomes a `RecipeError` at its place."""
        try:
            return validated(kind, self._plain(values, place))
        except ValidationError as error:
            mistakes = error.errors()
            mistake = next((entry for entry in mistakes if entry["type"] == "extra_forbidden"), mistakes[0])
            where = (*place, *mistake["loc"])
            if mistake["type"] == "extra_forbidden":
                raise self._error(
                    f"unknown field {str(where[-1])!r}", where, suggest(str(where[-1]), kind.model_fields)
                ) from None
            if mistake["type"] == "missing":
                raise self._error(
                    f"the field {str(where[-1])!r} is missing", where[:-1], f"add `{where[-1]}:`"
                ) from None
            given = "" if mistake["type"].startswith("value_error") else f", not {mistake['input']!r}"
            mend = f"`compress plugins {kind.name}` shows what it takes" if issubclass(kind, Part) else ""
            if mistake["type"] == "string_pattern_mismatch":
                mend = "write package.module:attribute"
            if mistake["type"] == "string_type" and isinstance(mistake["input"], int | float):
                mend = "quote it: a number, true and false are no text"
            raise self._error(f"{mistake['msg'].removeprefix('Value error, ')}{given}", where, mend) from None

    def _plain(self, value: Any, place: tuple[Any, ...]) -> Any:
        """The annotated containers and numbers of ruamel as plain ones; a recipe has no others."""
        match value:
            case Mapping():
                return {str(key): self._plain(entry, (*place, key)) for key, entry in value.items()}
            case list():
                return [self._plain(entry, (*place, index)) for index, entry in enumerate(value)]
            case None | bool():
                return value
            case ScalarBoolean():
                return bool(value)
            case int():
                return int(value)
            case float():
                if not isfinite(value):
                    raise self._error(f"a number must be finite, not {float(value)}", place, "write a finite number")
                return float(value)
            case str():
                return str(value)
            case _:
                kind = type(value).__name__
                raise self._error(f"{value} is neither text nor a number, but a {kind}", place, "quote it")

    def _part(self, kind: str, known: Mapping[str, type[AnyPart]], place: tuple[str, ...], key: str) -> AnyPart:
        """A part that is chosen by the value of `key` in the mapping at `place`."""
        node: Any = self.document
        for name in place:
            node = node[name]
        values = dict(node or {})
        if key not in values:
            raise self._error(f"the field {key!r} is missing", place, f"choose a {kind}: {', '.join(sorted(known))}")
        chosen = values.pop(key)
        if not isinstance(chosen, str):
            raise self._error(f"{chosen!r} names no {kind}", (*place, key), f"choose one: {', '.join(sorted(known))}")
        if chosen not in known:
            raise self._error(
                f"unknown {kind} {chosen!r}", (*place, key), self.plugins.unknown(kind, str(chosen), known)
            )
        return self._check(known[chosen], values, place)

    def _names(self) -> list[str]:
        names = list(self.document["pipeline"])
        if not names:
            raise self._error("the pipeline is empty", ("pipeline",), "add a step")
        for name in names:
            if not isinstance(name, str):
                raise self._error(f"{name!r} cannot name a step", ("pipeline", name), "quote it: a name is text")
            if not NAME.fullmatch(name) or name in RESERVED:
                raise self._error(
                    f"{name!r} cannot name a step",
                    ("pipeline", name),
                    f"use a-z, 0-9, '-' and '_', but not {', '.join(RESERVED)}",
                )
        return names

    def _step(self, name: str) -> Step:
        place = ("pipeline", name)
        if not isinstance(self.document["pipeline"][name], Mapping):
            raise self._error("a step must be a mapping", place, "give it `input:`, `teacher:` and `use:`")
        fields = self._check(StepFields, self.document["pipeline"][name], place)
        if fields.model is not None and fields.input != "none":
            raise self._error("a step with a model of its own starts afresh", (*place, "model"), "write `input: none`")
        exporter = None
        if EXPORT in fields.use:
            if len(fields.use) > 1:
                raise self._error(
                    "an export shares its step with nothing", (*place, "use"), "give it a step of its own"
                )
            exporter = self._part("export format", self.plugins.exporters, (*place, "use", EXPORT), "format")
            if lack := exporter.missing():
                what = f"the format {exporter.name!r} needs {lack}, which is not installed"
                raise self._error(what, (*place, "use", EXPORT, "format"), f"pip install '{lack}'")
        return Step(
            name=name,
            input=None if fields.input == "none" else fields.input,
            teacher=None if fields.teacher == "none" else fields.teacher,
            techniques=() if exporter else tuple(ordered(self._technique(place, key) for key in fields.use)),
            exporter=exporter,
            model=fields.model,
            use={key: value or {} for key, value in fields.use.items()},
        )

    def _technique(self, step: tuple[str, ...], name: str) -> Technique:
        place = (*step, "use", name)
        known = self.plugins.techniques
        if name not in known:
            raise self._error(
                f"unknown technique {name!r}", place, self.plugins.unknown("technique", name, [*known, EXPORT])
            )
        return self._check(known[name], self.document["pipeline"][step[1]]["use"][name] or {}, place)

    def _sorted(self, steps: dict[str, Step]) -> dict[str, Step]:
        for step in steps.values():
            for role in ("input", "teacher"):
                source = getattr(step, role)
                place = ("pipeline", step.name, role)
                if source is None:
                    continue
                if source not in steps:
                    raise self._error(f"there is no step {source!r}", place, suggest(source, [*steps, "none"]))
                if steps[source].exporter is not None:
                    raise self._error(
                        f"{source!r} is an export, which ends a chain",
                        place,
                        f"name {steps[source].input!r}, its own input",
                    )
        try:
            order = TopologicalSorter({name: step.needs for name, step in steps.items()}).static_order()
            return {name: steps[name] for name in order}
        except CycleError as error:
            circle = error.args[1]
            raise self._error(
                f"the steps go round in a circle: {' -> '.join(reversed(circle))}",
                ("pipeline", circle[0]),
                "name another input or teacher for one of them",
            ) from None

    def _check_chains(self, recipe: Recipe) -> None:
        numbers_from: dict[str, str | None] = {}
        for step in recipe.steps.values():
            place = ("pipeline", step.name)
            before = numbers_from[step.input] if step.input is not None else None
            if step.exporter is not None and step.input is None:
                raise self._error("an export needs a network", (*place, "input"), "name the step to be exported")
            try:
                check_together(step.techniques, teacher=step.teacher is not None, numbers_from=before)
            except RecipeError as error:
                raise self._error(error.what, (*place, "use"), error.mend) from None
            if step.teacher is not None and any(technique.keeps_teacher for technique in step.techniques):
                before = before or numbers_from[step.teacher]
            changed = changes_numbers(step.techniques, before=before is not None)
            numbers_from[step.name] = (before or step.name) if changed else None


def _line(node: Mapping[Any, Any], key: Any) -> int | None:
    """The line, from 1, of a key that stands in a mapping itself and does not come from another with `<<`."""
    own = (node.lc.data or {}) if isinstance(node, CommentedMap) else {}
    return int(own[key][0]) + 1 if key in own else None
