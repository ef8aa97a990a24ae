"""The commands of a workspace: their help, what they print for a person and for a machine, and what they import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

from compress_core import cli
from compress_core.catalog import catalog
from compress_core.listing import describe
from compress_core.report import MEASURED, Machine, Metrics, QualityFigures, Report, Row, write_report
from compress_core.workspace import Workspace
from tests.doors import call, lay_out

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
HEAVY = ("torch", "prefect", "dvc", "accelerate", "sklearn", "onnx", "onnxruntime", "tensorboard", "torch_pruning")
"""What takes long to import."""


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which nothing is broken into lines."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace where nothing ran, as the working directory."""
    folder = lay_out(tmp_path / "workspace")
    monkeypatch.chdir(folder)
    return folder


def test_the_help_names_every_command_and_how_the_recipe_is_run() -> None:
    found = call("compress", "--help")
    assert found.status == 0
    assert {"check", "clean", "plugins", "report", "schema", "try"} <= set(COMMANDS)
    assert all(f" {name} " in found.out for name in COMMANDS)
    assert "dvc repro" in found.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_a_sentence_and_an_example(command: str) -> None:
    found = call("compress", command, "--help")
    assert found.status == 0
    assert f"Example: compress {command}" in found.out
    assert len(found.out.split("Usage: ")[1].splitlines()[2].strip()) > 20


@pytest.mark.parametrize("wrong", [["chek"], ["check", "--jsn"], ["plugins", "a", "b"]])
def test_a_command_that_is_misspelt_ends_with_status_2(wrong: list[str]) -> None:
    found = call("compress", *wrong)
    assert found.status == 2
    assert "Traceback" not in found.err
    assert "Usage: compress" in found.err


def test_without_a_command_the_help_is_shown() -> None:
    assert "Usage: compress" in call("compress").out


def test_plugins_lists_every_plugin_with_its_parts(here: Path) -> None:
    found = {entry["name"]: entry for entry in json.loads(call("compress", "plugins", "--json").out)}
    assert {point.name for point in entry_points(group="compress")} == set(found)
    assert found["prune"]["parts"]["technique"] == ["prune"]
    assert "l2" in found["prune"]["parts"]["criterion"]
    assert found["distill"]["parts"] == {"technique": ["distill", "ensemble"]}
    assert "onnx" in found["export"]["parts"]["export format"]
    assert "digits" in found["data"]["parts"]["data source"]
    assert "classification" in found["tasks"]["parts"]["task"]
    assert {entry["error"] for entry in found.values()} == {None}
    rows = [line.split() for line in call("compress", "plugins").out.splitlines()]
    assert [row[0] for row in rows[1:]] == sorted(found)
    assert "compress-core" in rows[1]
    ends = {row[0]: " ".join(row[3:]) for row in rows}
    assert (ends["tensorboard"], ends["zoo"]) == ("watches the stages", "networks")


@pytest.mark.parametrize("name", sorted({*catalog().techniques, *catalog().tasks, *catalog().data_sources, "onnx"}))
def test_plugins_shows_every_parameter_of_a_part_with_what_it_is(name: str) -> None:
    part = next(entry for entry in describe(catalog(), name)["parts"] if entry["name"] == name)
    printed = call("compress", "plugins", name).out
    assert part["about"]
    for parameter, entry in part["parameters"].items():
        assert f"  {parameter} " in printed
        assert entry["description"].split("\n")[0][:60] in printed


def test_plugins_shows_type_range_and_default_in_a_line() -> None:
    rows = {line.split()[0]: line.split() for line in call("compress", "plugins", "substitute").out.splitlines()}
    assert rows["width"][1:7] == ["number", ">", "0", "<=", "1", "0.5"]
    assert rows["paths"][1:5] == ["list", "of", "string", "required"]
    rows = {line.split()[0]: line.split() for line in call("compress", "plugins", "clip").out.splitlines()}
    assert rows["scope"][1:5] == ["tensor", "|", "global", "tensor"]
    found = json.loads(call("compress", "plugins", "substitute", "--json").out)
    assert found["parts"][0]["parameters"]["width"]["exclusiveMinimum"] == 0


@pytest.mark.parametrize(("name", "words"), [("zoo", "has no parts"), ("distil", "did you mean 'distill'?")])
def test_plugins_says_why_there_is_nothing_to_show(name: str, words: str) -> None:
    found = call("compress", "plugins", name)
    assert found.status == 2
    assert words in found.err


def test_the_report_is_shown_as_a_table_and_as_json(here: Path) -> None:
    quality = QualityFigures(name="accuracy", value=0.97, low=0.95, high=0.98, examples=450)
    dense = Row(
        name="baseline",
        kind="model",
        format="torch",
        input=None,
        teacher=None,
        use={"tune": {"epochs": 2}},
        opponent="baseline",
        metrics=Metrics(quality=quality, bytes=5000, parameters=1210, nonzero=1210, macs=1184),
        smaller=1.0,
        difference=0.0,
    )
    report = Report(
        reference="baseline",
        points=True,
        headline=None,
        order=("baseline",),
        steps={"baseline": dense},
        machine=Machine(processor="P", cores=2, threads=1, device="cpu", system="S", versions={}),
        measured=MEASURED,
    )
    write_report(report, Workspace(here))
    found = json.loads(call("compress", "report", "--json").out)
    assert found == report.to_dict()
    assert found["steps"]["baseline"]["metrics"]["bytes"] == 5000
    printed = call("compress", "report")
    assert printed.status == 0
    assert "baseline" in printed.out
    assert "97.0 %" in printed.out


def test_a_table_in_a_pipe_is_not_cut(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, call("compress", "plugins", "prune").out.splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "70")
    assert max(map(len, call("compress", "plugins", "prune").out.splitlines())) <= 70


def test_who_interrupts_sees_no_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compress_core.recipe.read_recipe", interrupt)
    found = call("compress", "check")
    assert (found.status, found.err) == (130, "interrupted\n")


def imported(code: str, folder: Path) -> set[str]:
    """The heavy packages that a fresh Python imports while it runs the code."""
    script = f"{code}\nimport sys\nprint('\\n' + ' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, text=True, capture_output=True, check=True)
    return set(done.stdout.splitlines()[-1].split()) & set(HEAVY)


def test_help_imports_nothing_heavy(here: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "compress_core.cli", "--help"]
    done = subprocess.run(command, text=True, capture_output=True, check=True, env=dict(os.environ))
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in modules
    assert not {name for name in modules if name.partition(".")[0] in HEAVY}


def test_reading_a_recipe_with_all_plugins_imports_nothing_heavy(here: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from compress_core.catalog import catalog\n"
        "from compress_core.recipe import read_recipe\n"
        "assert not catalog().broken\n"
        "read_recipe(Path('params.yaml'))\n"
    )
    assert imported(code, here) == set()


def test_commands_that_compute_nothing_import_nothing_heavy(here: Path) -> None:
    code = (
        "import sys\n"
        "from compress_core import cli\n"
        "for command in (['plugins'], ['plugins', 'prune'], ['check'], ['schema'], ['clean'], ['report']):\n"
        "    sys.argv = ['compress', *command]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit:\n"
        "        pass\n"
    )
    assert imported(code, here) == set()
