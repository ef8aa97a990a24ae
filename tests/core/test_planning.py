"""The plan says which steps would run and why, in words: asked of a real DVC, and of accounts that it might give."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compress_core import planning
from compress_core.data import make_splits, save_splits
from compress_core.lock import lock, to_yaml
from compress_core.planning import Planned, data_are_current, plan
from compress_core.stage import run_stage
from compress_core.workspace import Workspace
from tests.doors import call, forgetting, lay_out, recipe_of
from tests.workspaces import SMALL, change, environment, make_workspace

RECIPE = (SMALL[: SMALL.index("  onnx:")] + SMALL[SMALL.index("  student:") :]).replace(
    "    teacher: baseline\n", "    teacher: baseline\n    model:\n      factory: mynet:build\n"
)
NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose steps ran here; DVC was told of their results. Not to be changed."""
    folder = make_workspace(tmp_path_factory.mktemp("finished") / "workspace", RECIPE)
    (folder / "mynet.py").write_text(NET)
    place, recipe = Workspace(folder), recipe_of(folder)
    (folder / "step.lock.yaml").write_text(to_yaml(lock(recipe, place)))
    save_splits(make_splits(recipe), place.artifact("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with forgetting():
            for step in recipe.steps:
                run_stage(recipe, step, place, printer=lambda text: None)
    stages = ["lock", "data", *(f"step@{name}" for name in recipe.steps)]
    command = ["dvc", "commit", "-q", "-f", *stages]
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that is the working directory."""
    folder = Path(shutil.copytree(finished, tmp_path / "workspace", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def reasons(folder: Path) -> dict[str, tuple[str, ...]]:
    planned = plan(recipe_of(folder), Workspace(folder))
    assert not [entry.unknown for entry in planned if entry.unknown]
    return {entry.step.name: entry.reasons for entry in planned}


def test_a_finished_workspace_has_nothing_to_run(here: Path) -> None:
    assert reasons(here) == {"baseline": (), "clipped": (), "student": ()}
    assert data_are_current(recipe_of(here), Workspace(here))


def test_a_changed_parameter_is_named_with_both_values_and_a_missing_result_too(here: Path) -> None:
    change(here, "share: 0.2", "share: 0.3")
    shutil.rmtree(here / "artifacts" / "student")
    (here / "metrics" / "student.json").unlink()
    assert reasons(here) == {
        "baseline": (),
        "clipped": ("pipeline.clipped.use.clip.share changed from 0.2 to 0.3",),
        "student": ("artifacts/student, metrics/student.json are missing",),
    }


def test_a_changed_seed_runs_everything_and_an_edited_module_names_itself(here: Path) -> None:
    change(here, "seed: 0", "seed: 1")
    (here / "mynet.py").write_text(NET.replace("(64, 10)", "(64, 10, bias=False)"))
    seed = "seed changed from 0 to 1"
    assert reasons(here) == {
        "baseline": (seed, f"the data are made anew: {seed}"),
        "clipped": (seed, "it comes after baseline"),
        "student": (seed, "the module mynet changed", "it comes after baseline"),
    }
    assert not data_are_current(recipe_of(here), Workspace(here))


def test_a_workspace_where_nothing_ran_says_so_and_no_more(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "workspace")
    assert set(reasons(folder).values()) == {("it never ran",)}
    assert not data_are_current(recipe_of(folder), Workspace(folder))
    assert (folder / "step.lock.yaml").is_file()


def test_the_command_shows_the_plan_as_a_table_and_as_json(here: Path) -> None:
    change(here, "share: 0.2", "share: 0.3")
    rows = [line.split() for line in call("compress", "check").out.splitlines()]
    assert rows[0] == ["step", "input", "teacher", "uses", "runs", "why"]
    assert rows[1][:5] == ["baseline", "-", "-", "tune", "no"]
    assert " ".join(rows[2]) == ("clipped baseline - clip yes pipeline.clipped.use.clip.share changed from 0.2 to 0.3")
    found = {entry["name"]: entry for entry in json.loads(call("compress", "check", "--json").out)}
    assert found["baseline"]["runs"] is False
    assert found["clipped"] == {
        "name": "clipped",
        "input": "baseline",
        "teacher": None,
        "use": {"clip": {"share": 0.3}},
        "runs": True,
        "reasons": ["pipeline.clipped.use.clip.share changed from 0.2 to 0.3"],
        "unknown": None,
    }


def test_without_dvc_the_recipe_is_checked_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_out(tmp_path / "workspace")
    monkeypatch.chdir(folder)
    assert {entry.unknown for entry in plan(recipe_of(folder), Workspace(folder))} == {"there is no dvc.yaml"}
    assert not (folder / "step.lock.yaml").exists()
    ended = call("compress", "check")
    assert ended.status == 0
    assert "unknown" in ended.out
    found = json.loads(call("compress", "check", "--json").out)
    assert [entry["runs"] for entry in found] == [None] * 4


LAST = {
    "params.yaml": {
        "seed": 0,
        "pipeline.clipped": {"input": "baseline", "teacher": "none", "use": {"clip": {"share": 0.2, "skip": ["a"]}}},
    },
    "step.lock.yaml": {
        "steps.clipped": {
            "core": "c0",
            "plugins": {"compress_clip": "compress-core 0.1.0, p0"},
            "code": {"mynet": "m0", "old": "o0"},
            "files": {"weights/a.bin": "f0"},
            "versions": {"torch": "2.12.0", "numpy": "2.4.6"},
        }
    },
}


def told(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[Any],
    *,
    locked: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """What is said of the step `clipped` if DVC gives this account of it, after a run with the parameters of LAST."""
    monkeypatch.setattr(planning, "lock", lambda recipe, workspace: {"steps": {"clipped": locked or {}}})
    (folder / "dvc.yaml").touch()
    last = {f"step@{name}": {"params": LAST} for name in ("baseline", "clipped", "student", "onnx")}
    (folder / "dvc.lock").write_text(json.dumps({"stages": {"data": {}, **last}}))
    status = json.dumps({"step@clipped": changes, **(more or {})})
    monkeypatch.setattr(
        subprocess, "run", lambda *arguments, **keywords: subprocess.CompletedProcess([], 0, status, "")
    )
    return reasons(folder)["clipped"]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A workspace where nothing ran."""
    return lay_out(tmp_path / "workspace")


def test_fields_that_came_went_or_hold_lists_are_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(plain, "share: 0.2", "scope: global\n        share: 0.2")
    account = [{"changed deps": {"params.yaml": {"pipeline.clipped": "modified"}}}]
    assert told(plain, monkeypatch, account) == (
        "pipeline.clipped.use.clip.skip is gone",
        "pipeline.clipped.use.clip.scope is new",
    )
    change(plain, "scope: global\n        share: 0.2", "skip: [a, b]\n        share: 0.2")
    assert told(plain, monkeypatch, account) == ("pipeline.clipped.use.clip.skip changed",)


def test_every_kind_of_source_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = LAST["step.lock.yaml"]["steps.clipped"]
    account = [{"changed deps": {"step.lock.yaml": {"steps.clipped": "modified"}}}]
    edits: dict[str, tuple[dict[str, Any], str]] = {
        "core": ({"core": "c1"}, "compress_core changed"),
        "plugin": ({"plugins": {"compress_clip": "compress-core 0.1.0, p1"}}, "the plugin compress_clip changed"),
        "code": ({"code": {"mynet": "m1", "old": "o0"}}, "the module mynet changed"),
        "less code": ({"code": {"mynet": "m0"}}, "the module old is gone"),
        "file": ({"files": {"weights/a.bin": "f1"}}, "weights/a.bin changed"),
        "version": ({"versions": {"torch": "2.13.0", "numpy": "2.4.6"}}, "torch changed from 2.12.0 to 2.13.0"),
    }
    for edit, words in edits.values():
        assert told(plain, monkeypatch, account, locked={**before, **edit}) == (words,)


def test_many_changed_sources_are_counted(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = [{"changed deps": {"step.lock.yaml": {"steps.clipped": "modified"}}}]
    now = {
        "core": "c1",
        "plugins": {"compress_clip": "compress-core 0.2.0, p1"},
        "versions": {"torch": "2.13.0", "numpy": "2.5.0"},
    }
    assert told(plain, monkeypatch, account, locked=now) == (
        "compress_core changed",
        "the plugin compress_clip changed",
        "the module mynet is gone",
        "4 more of step.lock.yaml changed",
    )


def test_a_field_that_dvc_alone_sees_changed_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = [{"changed deps": {"params.yaml": {"seed": "modified"}}}]
    assert told(plain, monkeypatch, account) == ("seed changed",)


@pytest.mark.parametrize(
    ("change_told", "words"),
    [
        ("changed command", "its command changed"),
        ({"changed outs": {"artifacts/clipped": "modified"}}, "artifacts/clipped changed since"),
        ({"changed outs": {"artifacts/clipped": "deleted"}}, "artifacts/clipped is missing"),
        ({"changed outs": {"artifacts/clipped": "not in cache"}}, "artifacts/clipped is not in cache"),
        ({"changed deps": {"artifacts/baseline": "modified"}}, "artifacts/baseline changed since"),
        ({"changed deps": {"artifacts/baseline": "deleted"}}, "artifacts/baseline is missing"),
    ],
)
def test_results_and_inputs_that_are_not_as_dvc_left_them_are_named(
    plain: Path, monkeypatch: pytest.MonkeyPatch, change_told: Any, words: str
) -> None:
    assert told(plain, monkeypatch, [change_told]) == (words,)


def test_an_input_that_is_made_anew_is_told_as_that_and_not_as_a_changed_file(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = [{"changed deps": {"artifacts/baseline": "deleted", "artifacts/data": "modified"}}]
    more = {"step@baseline": [{"changed outs": {"artifacts/baseline": "deleted"}}], "data": ["changed command"]}
    assert told(plain, monkeypatch, account, more=more) == ("it comes after baseline",)


@pytest.mark.parametrize(
    ("status", "printed", "error", "words"),
    [
        (255, "", "ERROR: Unable to acquire lock\n\n", "Unable to acquire lock"),
        (1, "", "/usr/bin/python: No module named dvc\n", "/usr/bin/python: No module named dvc"),
        (255, "", "", "`dvc status` ended with 255"),
        (0, "no JSON", "", "`dvc status` ended with 0"),
    ],
)
def test_what_dvc_complains_of_is_passed_on(
    plain: Path, monkeypatch: pytest.MonkeyPatch, status: int, printed: str, error: str, words: str
) -> None:
    (plain / "dvc.yaml").touch()
    monkeypatch.setattr(
        subprocess, "run", lambda *arguments, **keywords: subprocess.CompletedProcess([], status, printed, error)
    )
    planned = plan(recipe_of(plain), Workspace(plain))
    assert {entry.unknown for entry in planned} == {words}
    assert {entry.to_dict()["runs"] for entry in planned} == {None}


def test_a_damaged_dvc_lock_is_no_lock(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = [{"changed deps": {"params.yaml": "new"}}]
    assert told(plain, monkeypatch, account) != ("it never ran",)
    (plain / "dvc.lock").write_text("stages: [")
    assert reasons(plain)["clipped"] == ("it never ran",)


def test_a_step_without_reasons_does_not_run(plain: Path) -> None:
    step = recipe_of(plain).step("clipped")
    assert Planned(step).to_dict()["runs"] is False
    assert Planned(step, ("why",)).to_dict()["runs"] is True
