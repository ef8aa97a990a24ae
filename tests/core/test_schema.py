"""The JSON schema of params.yaml accepts what a recipe may be and rejects what it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from compress_core.catalog import catalog
from compress_core.errors import RecipeError
from compress_core.recipe import read_recipe
from compress_core.schema import DIALECT, parameters, recipe_schema
from tests.core.fakes import RECIPE, fake_catalog
from tests.doors import call
from tests.workspaces import ROOT, SMALL

SHIPPED = sorted(
    path for path in ROOT.rglob("params.yaml") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def parsed(text: str) -> Any:
    return YAML(typ="safe").load(text)


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(recipe_schema(catalog()))


def complaints(validator: Draft202012Validator, text: str) -> list[str]:
    """The places of the recipe that the schema complains of."""
    return [".".join(map(str, error.absolute_path)) for error in validator.iter_errors(parsed(text))]


def test_it_is_a_valid_schema_of_its_dialect_that_refers_only_to_itself(validator: Draft202012Validator) -> None:
    schema = validator.schema
    assert schema["$schema"] == DIALECT == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)
    text = json.dumps(schema)
    referred = {part.partition('"')[0] for part in text.split('"$ref": "')[1:]}
    assert referred == {f"#/$defs/{name}" for name in schema["$defs"]}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_accepts_every_recipe_that_is_shipped(validator: Draft202012Validator, path: Path) -> None:
    assert complaints(validator, path.read_text(encoding="utf-8")) == []


def test_it_accepts_the_small_recipe_and_techniques_that_are_left_empty(validator: Draft202012Validator) -> None:
    assert complaints(validator, SMALL) == []
    assert complaints(validator, SMALL.replace("clip:\n        share: 0.2\n", "quantize:\n")) == []


MISTAKES = {
    # name: (text of the recipe, what replaces it, the place that is complained of)
    "unknown section": ("threads: 1", "threads: 1\nthread: 1", ""),
    "missing section": ("threads: 1\n", "", ""),
    "unknown technique": ("clip:", "clipp:", "pipeline.clipped.use"),
    "unknown parameter": ("share: 0.2", "shore: 0.2", "pipeline.clipped.use.clip"),
    "out of range": ("share: 0.2", "share: 1.5", "pipeline.clipped.use.clip"),
    "wrong type": ("epochs: 2", "epochs: two", "pipeline.baseline.use.tune"),
    "no choice": ("epochs: 2", "optimizer: best", "pipeline.baseline.use.tune"),
    "required parameter": ("clip:\n        share: 0.2\n", "substitute:\n", "pipeline.clipped.use.substitute"),
    "unknown source": ("source: digits", "source: digit", "data"),
    "no source": ("source: digits", "validation: 0.1", "data"),
    "unknown parameter of the source": ("source: digits", "source: digits\n  color: true", "data"),
    "unknown task": ("name: classification", "name: classify", "task"),
    "unknown format": ("format: onnx", "format: onyx", "pipeline.onnx.use.export"),
    "export in company": ("format: onnx", "format: onnx\n      clip:\n        share: 0.2", "pipeline.onnx.use"),
    "no import string": ("compress_zoo:MLP", "compress_zoo.MLP", "model.factory"),
    "no file name": ("  clipped:", "  a/b:", "pipeline"),
    "reserved name": ("  student:", "  data:", "pipeline"),
    "empty pipeline": (SMALL[SMALL.index("pipeline:") :], "pipeline: {}\n", "pipeline"),
    "nothing used": ("use:\n      clip:\n        share: 0.2\n", "use: {}\n", "pipeline.clipped.use"),
    "unknown field of a step": ("teacher: baseline", "teacher: baseline\n    inputs: none", "pipeline.student"),
    "missing field of a step": ("    teacher: baseline\n", "", "pipeline.student"),
    "unknown precision": ("float32", "float31", "precision"),
    "negative seed": ("seed: 0", "seed: -1", "seed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_rejects_the_mistakes_that_the_recipe_rejects(
    validator: Draft202012Validator, tmp_path: Path, mistake: str
) -> None:
    old, new, place = MISTAKES[mistake]
    assert old in SMALL
    text = SMALL.replace(old, new, 1)
    assert complaints(validator, text)[0] == place
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "params.yaml")


def test_it_describes_every_parameter_for_an_editor(validator: Draft202012Validator) -> None:
    definitions = validator.schema["$defs"]
    nameless = [
        f"{kind}.{name}"
        for kind, definition in definitions.items()
        for name, entry in definition.get("properties", {}).items()
        if not entry.get("description") and "$ref" not in json.dumps(entry)
    ]
    assert nameless == []
    assert all(entry["description"] for name, entry in validator.schema["properties"].items() if "type" in entry)


def test_it_knows_the_plugins_that_are_installed_and_no_others() -> None:
    schema = recipe_schema(fake_catalog())
    use = schema["$defs"]["StepFields"]["properties"]["use"]["properties"]
    assert set(use) == {"export", *fake_catalog().techniques}
    assert [choice["properties"]["source"] for choice in schema["properties"]["data"]["oneOf"]] == [
        {"const": "fake-digits"}
    ]
    assert list(Draft202012Validator(schema).iter_errors(parsed(RECIPE))) == []


def test_parameters_tell_type_range_default_and_whether_they_are_required() -> None:
    found = parameters(catalog().techniques["substitute"])
    assert (found["paths"]["required"], found["paths"]["minItems"]) == (True, 1)
    assert (found["width"]["required"], found["width"]["default"]) == (False, 0.5)
    assert (found["width"]["exclusiveMinimum"], found["width"]["maximum"]) == (0, 1)
    assert parameters(catalog().techniques["prune"])["spacing"]["enum"] == ["geometric", "linear"]


def test_the_command_prints_it() -> None:
    ended = call("compress", "schema")
    assert ended.status == 0
    assert json.loads(ended.out) == json.loads(json.dumps(recipe_schema(catalog())))
