"""The guide for plugin authors shows real files, and leaves no hook and no method out."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

from compress_core import errors, hookspecs, parts, testing
from compress_core.catalog import catalog
from compress_core.plan import TrainingPlan

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "plugins.md").read_text()
EXAMPLE = ROOT / "tests" / "example_plugin"

BLOCK = re.compile(r"^```(\w*)(?: ([^\n`]+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [match.groups() for match in BLOCK.finditer(GUIDE)]
SHOWN = {place: text for _, place, text in BLOCKS if place}
CODE = "".join(re.findall(r"`[^`\n]+`", BLOCK.sub("", GUIDE))) + "".join(text for _, _, text in BLOCKS)


def methods_of(kind: type) -> list[str]:
    """The methods, properties and class attributes that a part declares itself."""
    own = {name for name, value in vars(kind).items() if callable(value) or isinstance(value, property)}
    declared = {name for name, hint in kind.__annotations__.items() if "ClassVar" in str(hint)}
    return sorted(name for name in own | declared if not name.startswith("_") and not hasattr(BaseModel, name))


PARTS = [getattr(parts, name) for name in parts.__all__ if name not in {"Change", "TrainingPlan"}]
HOOKS = sorted(
    name for name, value in vars(hookspecs).items() if inspect.isfunction(value) and hasattr(value, "compress_spec")
)


def test_every_file_of_the_example_is_shown_and_no_other():
    files = (path for path in EXAMPLE.rglob("*") if path.suffix in {".py", ".toml"} and "__pycache__" not in path.parts)
    assert sorted(SHOWN) == sorted(str(path.relative_to(EXAMPLE)) for path in files)


@pytest.mark.parametrize("place", SHOWN)
def test_a_block_with_a_path_is_the_file(place):
    assert SHOWN[place] == (EXAMPLE / place).read_text()


def test_the_hooks_are_found():
    assert "register_techniques" in HOOKS
    assert "stage_failed" in HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_arguments(hook):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"`{hook}({arguments})`" in GUIDE


@pytest.mark.parametrize(
    "name", [f"{kind.__name__}.{method}" for kind in PARTS for method in methods_of(kind)] + ["Technique.name"]
)
def test_every_method_of_a_part_is_documented(name):
    kind, _, method = name.partition(".")
    section = GUIDE.split(f"### `{kind}`", 1)[1].split("\n#", 1)[0]
    assert re.search(rf"`{method}\b", section), f"{name} is not explained below its heading"


@pytest.mark.parametrize("field", TrainingPlan.__dataclass_fields__)
def test_every_field_of_the_plan_is_documented(field):
    assert f"`{field}`" in GUIDE


@pytest.mark.parametrize(
    "name",
    [name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.CompressError)],
)
def test_every_error_is_documented(name):
    assert f"`{name}`" in GUIDE


@pytest.mark.parametrize("change", parts.Change)
def test_every_kind_of_change_is_documented(change):
    assert f"`{change.name}`" in GUIDE


@pytest.mark.parametrize("name", testing.__all__)
def test_every_name_of_the_kit_is_documented(name):
    assert re.search(rf"\b{name}\b", CODE)


def _python_blocks() -> list[str]:
    return [text for language, place, text in BLOCKS if language == "python" and not place]


@pytest.mark.parametrize("text", _python_blocks(), ids=lambda text: text.splitlines()[0])
def test_the_other_python_blocks_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    (tmp_path / "block_of_the_guide.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "block_of_the_guide", raising=False)
    import_module("block_of_the_guide")


def test_every_kind_of_check_is_explained():
    kit = GUIDE.split("## The conformance kit", 1)[1]
    listed = set(re.findall(r"^\| `([a-z-]+)(?:\[[A-Z-]+\])?` \|", kit, re.MULTILINE))
    kind = next(iter(catalog().techniques.values()))
    assert listed == {str(check).partition("[")[0] for check in testing.checks_for(kind)}
