"""Plugins are found by entry point; what is wrong with one is told with its name."""

from __future__ import annotations

import sys
import types
from importlib.metadata import Distribution
from textwrap import dedent

import pytest

from compress_core import hookimpl
from compress_core.catalog import DISABLED_VARIABLE, REGISTERING, catalog, read_catalog
from compress_core.errors import PluginError
from compress_core.parts import Technique
from tests.core.fakes import Cut, Digits, point


class Melt(Technique):
    """A technique of another plugin."""

    name = "melt"

    def apply(self, model, run):
        return model


@pytest.fixture
def plugin(monkeypatch):
    """Make a plugin's module from its hooks, and give its entry point."""

    def make(name: str, **hooks):
        module = types.ModuleType(f"plugin_made_for_{name}")
        for hook, function in hooks.items():
            setattr(module, hook, hookimpl(function))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return point(name, module.__name__)

    return make


class Installed(Distribution):
    """A distribution that exists in this test only."""

    def __init__(self, name: str, version: str) -> None:
        self.text = f"Name: {name}\nVersion: {version}\n"

    def read_text(self, filename):
        return self.text if filename == "METADATA" else None

    def locate_file(self, path):
        raise NotImplementedError


def test_parts_are_found_by_name_with_their_owner(plugin):
    found = read_catalog([point("fake", "tests.core.fakes"), plugin("other", register_techniques=lambda: [Melt])])
    assert found.techniques["cut"] is Cut
    assert found.data_sources == {"fake-digits": Digits}
    assert (found.owner(Cut).name, found.owner(Cut).package) == ("fake", "tests")
    assert found.owner(Melt).name == "other"
    assert set(found.tasks) == {"test-classification"}
    assert set(found.criteria) == {"last"}
    assert set(found.exporters) == {"text"}


def test_the_order_of_the_entry_points_does_not_matter(plugin):
    points = [plugin("a", register_techniques=lambda: [Melt]), point("fake", "tests.core.fakes")]
    one, other = read_catalog(points), read_catalog(points[::-1])
    assert [entry.name for entry in one.plugins] == [entry.name for entry in other.plugins] == ["a", "fake"]
    assert list(one.techniques) == list(other.techniques)


def test_a_plugin_s_distribution_and_version_are_kept(plugin):
    entry = plugin("other", register_techniques=lambda: [Melt])._for(Installed("compress-other", "1.2"))
    found = read_catalog([entry]).plugins[0]
    assert (found.distribution, found.version) == ("compress-other", "1.2")


def test_two_plugins_with_one_name_are_refused_with_both_distributions(plugin):
    one = plugin("melt")._for(Installed("melt-one", "1"))
    other = point("melt", "tests.core.fakes")._for(Installed("melt-two", "2"))
    with pytest.raises(PluginError, match="two plugins are called 'melt'") as caught:
        read_catalog([one, other])
    assert "melt-one" in caught.value.what
    assert "melt-two" in caught.value.what
    assert f"{DISABLED_VARIABLE}=melt" in caught.value.mend
    assert read_catalog([one, other], disabled="melt").plugins == ()


def test_an_entry_point_that_is_seen_twice_is_one_plugin():
    twice = [point("fake", "tests.core.fakes"), point("fake", "tests.core.fakes")]
    assert [entry.name for entry in read_catalog(twice).plugins] == ["fake"]


def test_one_module_under_two_names_is_refused():
    with pytest.raises(PluginError, match="'also' and 'fake' are the same module") as caught:
        read_catalog([point("fake", "tests.core.fakes"), point("also", "tests.core.fakes")])
    assert f"{DISABLED_VARIABLE}=fake" in caught.value.mend


def test_two_parts_with_one_name_are_refused_with_both_plugins(plugin):
    class Other(Melt):
        """The same name again."""

    points = [
        plugin("one", register_techniques=lambda: [Melt]),
        plugin("two", register_techniques=lambda: [Other]),
    ]
    with pytest.raises(PluginError, match="'one' and 'two' both have a Technique called 'melt'") as caught:
        read_catalog(points)
    assert f"{DISABLED_VARIABLE}=two" in caught.value.mend
    assert read_catalog(points, disabled="two").techniques == {"melt": Melt}


def test_a_misspelt_hook_is_refused_with_the_nearest_name(plugin):
    with pytest.raises(PluginError, match="'other'") as caught:
        read_catalog([plugin("other", register_technique=lambda: [Melt])])
    assert caught.value.mend == "register_technique: did you mean 'register_techniques'?"


def test_a_hook_with_a_wrong_argument_is_refused(plugin):
    with pytest.raises(PluginError, match="'other'") as caught:
        read_catalog([plugin("other", stage_started=lambda stange: None)])
    assert "arguments" in caught.value.mend


@pytest.mark.parametrize("given", [[Digits], [Melt()], ["melt"], [type("Nameless", (Melt,), {"name": None})]])
def test_what_is_no_technique_is_refused(plugin, given):
    with pytest.raises(PluginError, match="plugin 'other': register_techniques gives") as caught:
        read_catalog([plugin("other", register_techniques=lambda: given)])
    assert "Technique" in caught.value.mend


def test_a_plugin_is_imported_once_more_when_the_parser_itself_fails(tmp_path, monkeypatch):
    source = """
        from pathlib import Path
        tried = Path(__file__).with_name("tried")
        if not tried.exists():
            tried.touch()
            raise SystemError("AST constructor recursion depth mismatch (before=117, after=75)")
        from tests.core.fakes import *
    """
    (tmp_path / "plugin_at_the_second_try.py").write_text(dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    found = read_catalog([point("late", "plugin_at_the_second_try")])
    assert not found.broken
    assert (tmp_path / "tried").exists()


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise OSError('no library')", "OSError: no library"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_fails_on_import_harms_no_other(tmp_path, monkeypatch, source, error):
    (tmp_path / "plugin_that_fails.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = read_catalog([point("fails", "plugin_that_fails"), point("fake", "tests.core.fakes")])
    assert [entry.name for entry in found.broken] == ["fails"]
    assert error in found.broken[0].error
    assert "cut" in found.techniques
    assert "plugin 'fails' of unknown is broken" in found.unknown("technique", "melt", found.techniques)


def torn():
    import no_such_module  # noqa: F401


def exits():
    raise SystemExit(3)


def halfway():
    yield Melt
    raise OSError("no library")


HOOKS = list(REGISTERING)
FAILURES = [
    (torn, "ModuleNotFoundError: No module named 'no_such_module'"),
    (exits, "SystemExit: 3"),
    (halfway, "OSError: no library"),
    (lambda: None, "TypeError: 'NoneType' object is not iterable"),
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("function", "reason"), FAILURES)
def test_a_plugin_that_cannot_give_its_parts_is_broken_and_harms_no_other(plugin, hook, function, reason):
    told = []

    def stage_started(stage):
        told.append(stage)

    hooks = {hook: function, "stage_started": stage_started}
    found = read_catalog([plugin("fails", **hooks), point("fake", "tests.core.fakes")])
    assert [(entry.name, entry.error) for entry in found.broken] == [("fails", f"{hook} fails with {reason}")]
    assert "cut" in found.techniques and "melt" not in found.techniques
    assert reason in found.unknown("technique", "melt", found.techniques)
    found.watchers.tell("stage_started", stage=None)
    assert told == [], "a broken plugin watches nothing"


@pytest.mark.parametrize(("function", "reason"), [*FAILURES, (lambda: [Melt()], "gives Melt")])
def test_a_plugin_that_cannot_give_its_modules_is_warned_about_and_the_others_go_on(plugin, function, reason):
    from torch import nn

    found = read_catalog(
        [plugin("fails", register_modules=function), plugin("other", register_modules=lambda: [nn.Identity])]
    )
    with pytest.warns(RuntimeWarning, match=f"plugin 'fails' gives no modules: register_modules .*{reason}"):
        assert found.modules == {"torch.nn.modules.linear.Identity": nn.Identity}


@pytest.mark.parametrize("value", ["tests.core.fakes:Cut", "tests.core.fakes:Catalog", "tests.core:fakes"])
def test_an_entry_point_that_names_an_attribute_is_broken_by_name(value):
    found = read_catalog([point("inner", value)])
    assert found.broken[0].name == "inner"
    assert f"entry point {value!r} names an attribute" in found.broken[0].error
    assert not found.techniques


def test_a_plugin_that_is_not_there_is_broken_by_name():
    broken = read_catalog([point("gone", "no_such_plugin_at_all")]).broken
    assert [entry.name for entry in broken] == ["gone"]
    assert "no_such_plugin_at_all" in broken[0].error


@pytest.mark.parametrize("disabled", ["fake", " fake , nobody", "nobody,fake"])
def test_plugins_are_left_out_by_name(plugin, disabled):
    points = [point("fake", "tests.core.fakes"), plugin("other", register_techniques=lambda: [Melt])]
    assert list(read_catalog(points, disabled).techniques) == ["melt"]


def test_the_variable_leaves_plugins_out_of_the_environment_s_catalog(monkeypatch):
    catalog.cache_clear()
    try:
        assert "clip" in catalog().techniques
        catalog.cache_clear()
        monkeypatch.setenv(DISABLED_VARIABLE, "clip")
        assert "clip" not in catalog().techniques
    finally:
        catalog.cache_clear()


def test_module_types_are_asked_for_only_when_they_are_needed(plugin):
    asked = []

    def register_modules():
        asked.append(1)
        from torch import nn

        class Own(nn.Module):
            """A module type of the plugin's own."""

        return [Own]

    found = read_catalog([plugin("other", register_modules=register_modules)])
    assert asked == []
    assert [name.rpartition(".")[2] for name in found.modules] == ["Own"]


def test_a_watcher_that_fails_is_warned_about_and_the_others_go_on(plugin):
    from compress_core.watching import Stage

    seen = []

    def fail(stage):
        raise OSError("disk full")

    def look(stage):
        seen.append(stage.name)

    found = read_catalog([plugin("fails", stage_started=fail), plugin("looks", stage_started=look)])
    stage = Stage("prune", folder=None)
    with pytest.warns(RuntimeWarning, match="'fails' failed in stage_started"):
        found.watchers.tell("stage_started", stage=stage)
    found.watchers.tell("stage_started", stage=stage)
    assert seen == ["prune", "prune"]
