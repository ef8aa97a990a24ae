"""What is shown of a part's parameters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import Field

from compress_core.listing import describe, kind_of_value, shown
from compress_core.parts import Technique


class Shown(Technique):
    """Has a parameter of every kind."""

    name = "shown"

    pairs: dict[str, int] = Field(default_factory=lambda: {"a": 1})
    """A default that is made anew."""
    anything: dict[str, object] = Field(default_factory=dict)
    """An empty one."""
    text: str = ""
    """An empty text."""
    word: str = "plain"
    """A text."""
    on: bool = True
    """A truth value."""
    size: tuple[int, float] | None = None
    """A pair."""
    names: tuple[str, ...] = ()
    """A list."""
    bare: list = []  # noqa: RUF012
    """A list of whatever."""
    share: float = Field(default=0.5, gt=0, le=1)
    """A number with bounds."""

    def apply(self, model, run):
        return model


@pytest.fixture(scope="module")
def parameters():
    plugins = SimpleNamespace(
        techniques={"shown": Shown},
        criteria={},
        data_sources={},
        tasks={},
        exporters={},
        owner=lambda part: SimpleNamespace(name=""),
    )
    (part,) = describe(plugins, "shown")["parts"]
    return part["parameters"]


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("pairs", "mapping to integer", '{"a": 1}'),
        ("anything", "mapping", "{}"),
        ("text", "string", '""'),
        ("word", "string", "plain"),
        ("on", "boolean", "true"),
        ("size", "[integer, number] | null", "null"),
        ("names", "list of string", "[]"),
        ("bare", "list of any", "[]"),
        ("share", "number > 0 <= 1", "0.5"),
    ],
)
def test_a_parameter_is_shown_with_its_kind_and_its_default_as_a_recipe_would_give_them(
    parameters, name, kind, default
):
    assert (kind_of_value(parameters[name]), shown(parameters[name]["default"])) == (kind, default)
