"""An import string is resolved, or told with its place; code that exits does not take the command along."""

from __future__ import annotations

import itertools

import pytest

from compress_core.errors import DataError, ModelError
from compress_core.factory import build_model
from compress_core.imports import resolve

NAMES = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a user's module and give its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"module_of_a_user_{next(NAMES)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_an_attribute_is_found_by_its_path(module):
    name = module("class Nets:\n    class Small: pass\n")
    assert resolve(f"{name}:Nets.Small", ModelError, "model").__qualname__ == "Nets.Small"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit(1)", r"SystemExit\(1\)"),
        ("raise SystemExit('usage: train.py FILE')", "usage: train.py FILE"),
        ("import argparse; p = argparse.ArgumentParser(); p.add_argument('--x', required=True); p.parse_args([])", "2"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_fails_or_exits_on_import_is_told_with_its_place(module, source, reason):
    name = module(source)
    with pytest.raises(DataError, match=f"{name} fails on import with .*{reason}") as caught:
        resolve(f"{name}:make", DataError, "data.factory")
    assert caught.value.where == "data.factory"
    assert f"import {name}" in caught.value.mend


def test_a_factory_that_exits_is_told_with_its_place(module):
    name = module("def make(width=3):\n    raise SystemExit(2)\n")
    with pytest.raises(ModelError, match=f"'{name}:make' fails with SystemExit: 2") as caught:
        build_model(f"{name}:make", {})
    assert caught.value.where == "model.params"
    assert "width=3" in caught.value.mend


def test_a_signal_while_a_user_s_code_runs_still_ends_the_command(module):
    name = module("raise SystemExit(128 + 15)")
    with pytest.raises(SystemExit) as caught:
        resolve(f"{name}:make", ModelError, "model")
    assert caught.value.code == 143
    name = module("def make():\n    raise SystemExit(143)\n")
    with pytest.raises(SystemExit):
        build_model(f"{name}:make", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("json", "is no import string"),
        ("json:", "is no import string"),
        ("no_such_module:x", "there is no module 'no_such_module'"),
        ("json:lods", "no 'lods' there"),
    ],
)
def test_what_does_not_resolve_is_told(text, message):
    with pytest.raises(ModelError, match=message) as caught:
        resolve(text, ModelError, "model.factory")
    assert caught.value.where == "model.factory"
    assert caught.value.mend
