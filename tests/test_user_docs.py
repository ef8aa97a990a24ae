"""The README and the pages for users say what is there, and their code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from compress_core.catalog import catalog
from compress_core.cli import app
from compress_core.recipe import Settings, StepFields, read_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_readme_s_python_compresses_and_exports(tmp_path: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *_, last = (line.rsplit(maxsplit=3) for line in done.stdout.splitlines())
    assert (first[0], last[0]) == ("input", "quantize")
    assert int(last[2]) < int(first[2]) / 4
    assert int(last[3]) < int(first[3]) / 2
    assert (tmp_path / "small" / "model.onnx").stat().st_size > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    assert re.search(rf"^compress {command}\b", README, re.MULTILINE)


def test_every_command_in_the_readme_exists() -> None:
    assert set(re.findall(r"^compress ([a-z-]+)", README, re.MULTILINE)) <= set(COMMANDS)


def test_every_make_command_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"run", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "recipe.md"])
def test_the_yaml_of_the_pages_is_a_recipe(page: str, tmp_path: Path) -> None:
    recipe = YAML().load((ROOT / "params.yaml").read_text())
    for number, text in enumerate(blocks("yaml", PAGES[page])):
        found = YAML().load(text)
        steps = found.pop("pipeline", {name: found.pop(name) for name in list(found) if "use" in (found[name] or {})})
        recipe["pipeline"].update(steps)
        recipe.update(found)
        path = tmp_path / f"{number}.yaml"
        YAML().dump(recipe, path)
        assert set(steps) <= set(read_recipe(path).steps)


@pytest.mark.parametrize("field", [*Settings.model_fields, *StepFields.model_fields, *catalog().data_sources])
def test_every_field_of_a_recipe_is_explained(field: str) -> None:
    assert f"`{field}`" in PAGES["recipe.md"] or f"`{field}:`" in PAGES["recipe.md"]


@pytest.mark.parametrize("name", [name for name in catalog().techniques if name != "dequantize"])
def test_every_technique_is_in_the_table_of_methods(name: str) -> None:
    assert f"`{name}`" in PAGES["techniques.md"]


def test_the_reference_is_what_the_plugins_say() -> None:
    spec = spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.reference() == PAGES["reference.md"], "run `python docs/reference.py`"
