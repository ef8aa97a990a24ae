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
    found = {kind: definitions[references[kind, "validation"]["$ref"].rpartition("/")[2]] for kind in known}

    settings, step, model = found[Settings], found[StepFields], found[ModelSpec]
    uses = {name: {"anyOf": [found[kind], {"type": "null"}]} for name, kind in sorted(plugins.techniques.items())}
    uses[EXPORT] = _chosen(plugins.exporters, found, "format")
    step["properties"]["use"] |= {"additionalProperties": False, "properties": uses}
    step["properties"]["model"] = {"anyOf": [model, {"type": "null"}]}
    sections = {
        "data": _chosen(plugins.data_sources, found, "source"),
        "model": model,
        "task": _chosen(plugins.tasks, found, "name"),
        "pipeline": {
            "description": "The steps, each a stage of the DAG.",
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{NAME.pattern}$", "not": {"enum": list(RESERVED)}},
            "additionalProperties": step,
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


def _chosen(parts: Mapping[str, type[Part]], found: Mapping[type[BaseModel], Schema], key: str) -> Schema:
    """One of several parts, chosen by the value of `key` beside its parameters."""
    return {"oneOf": list(_with_choice(parts, found, key))}


def _with_choice(
    parts: Mapping[str, type[Part]], found: Mapping[type[BaseModel], Schema], key: str
) -> Iterable[Schema]:
    for name, kind in sorted(parts.items()):
        schema = found[kind]
        yield {
            **schema,
            "properties": {key: {"const": name}, **schema.get("properties", {})},
            "required": [key, *schema.get("required", ())],
        }
