"""The JSON schema of params.yaml, made of what the installed plugins offer: editors complete and check with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from compress_core.catalog import Catalog
from compress_core.parts import Part
from compress_core.recipe import EXPORT, NAME, RESERVED, ModelSpec, Settings, StepFields

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def recipe_schema(plugins: Catalog) -> Schema:
    """The schema of a recipe for the plugins that are installed."""
    groups = (plugins.techniques, plugins.data_sources, plugins.tasks, plugins.exporters)
    known: list[type[BaseModel]] = [
        ModelSpec,
        Settings,
        StepFields,
        *(kind for group in groups for kind in group.values()),
    ]
    references, whole = models_json_schema([(kind, "validation") for kind in known])
    definitions: dict[str, Schema] = whole["$defs"]
    names = {kind: references[kind, "validation"]["$ref"].rpartition("/")[2] for kind in known}
    chosen = [plugins.data_sources, plugins.tasks, plugins.exporters]
    inline = {kind: definitions.pop(names[kind]) for group in chosen for kind in group.values()}

    settings, step = definitions.pop(names[Settings]), definitions[names[StepFields]]
    uses = {name: _used(names[kind], definitions) for name, kind in sorted(plugins.techniques.items())}
    uses[EXPORT] = _chosen(plugins.exporters, inline, "format")
    step["properties"]["use"] |= {
        "additionalProperties": False,
        "properties": uses,
        "dependentSchemas": {EXPORT: {"maxProperties": 1}},
    }
    sections = {
        "data": _chosen(plugins.data_sources, inline, "source"),
        "model": _reference(names[ModelSpec]),
        "task": _chosen(plugins.tasks, inline, "name"),
        "pipeline": {
            "description": "The steps, each a stage of the DAG.",
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{NAME.pattern}$", "not": {"enum": list(RESERVED)}},
            "additionalProperties": _reference(names[StepFields]),
        },
    }
    return {
        "$schema": DIALECT,
        "title": "params.yaml of compress",
        "type": "object",
        "properties": {**settings["properties"], **sections},
        "required": [*settings["required"], *sections],
        "additionalProperties": False,
        "$defs": definitions,
    }


def parameters(part: type[Part]) -> dict[str, Schema]:
    """The schema of each parameter of a part, by name."""
    schema = part.model_json_schema()
    required = set(schema.get("required", ()))
    return {name: {**entry, "required": name in required} for name, entry in schema.get("properties", {}).items()}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _used(name: str, definitions: Mapping[str, Schema]) -> Schema:
    """A technique's parameters; one that needs none may be left empty."""
    reference = _reference(name)
    return reference if definitions[name].get("required") else {"anyOf": [reference, {"type": "null"}]}


def _chosen(parts: Mapping[str, type[Part]], found: Mapping[type[Part], Schema], key: str) -> Schema:
    """One of several parts, chosen by the value of `key` beside its parameters."""
    return {"oneOf": list(_with_choice(parts, found, key))}


def _with_choice(parts: Mapping[str, type[Part]], found: Mapping[type[Part], Schema], key: str) -> Iterable[Schema]:
    for name, kind in sorted(parts.items()):
        schema = found[kind]
        yield {
            **schema,
            "properties": {key: {"const": name}, **schema.get("properties", {})},
            "required": [key, *schema.get("required", ())],
        }
