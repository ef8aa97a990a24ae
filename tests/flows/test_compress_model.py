"""The flow: the same work as `dvc repro`, seen by Prefect."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compress_core.recipe import read_recipe
from compress_core.report import load_report
from compress_core.report.wording import headline_words, size
from compress_core.workspace import Workspace
from flows.compress_model import compress_model, width
from tests.flows.conftest import Run, run_flow
from tests.flows.flows import (
    FLOW,
    STEPS,
    begun,
    executed,
    go,
    make_student_wait,
    stages_in,
    started,
    wait_for,
)
from tests.workspaces import change, repro

STAGES = {"lock", "data", *STEPS, "report"}


@pytest.mark.slow
def test_a_flow_run_does_everything_once_and_leaves_nothing_for_dvc(first: tuple[Path, Run], workspace: Path) -> None:
    run = first[1]
    assert (run.state.name, run.state.message) == ("Completed", "all 6 stages are up to date")
    assert executed(run.text) == sorted(STAGES - {"lock"})
    assert repro(workspace) == []


def test_every_step_is_a_task_run_with_its_lines_behind_what_it_needs(first: tuple[Path, Run]) -> None:
    run = first[1]
    tasks = run.tasks
    assert set(tasks) == STAGES
    assert {task.state_name for task in tasks.values()} == {"Completed"}
    names = {task.id: name for name, task in tasks.items()}
    needs = {
        name: {names[need.id] for need in task.task_inputs["wait_for"]}
        for name, task in tasks.items()
        if name != "lock"
    }
    assert needs == {
        "data": {"lock"},
        "baseline": {"data"},
        "clipped": {"data", "baseline"},
        "student": {"data", "baseline"},
        "report": set(STEPS),
    }
    lines = run.logs("student")
    assert any(line.startswith("epoch 1/1: loss ") for line in lines)
    assert any(line.startswith("distill: ") for line in lines)
    assert not any(line.startswith("clip: ") for line in lines)
    assert any(line.startswith("clip: ") for line in run.logs("clipped"))


def test_the_report_stands_among_the_artifacts_of_the_flow_run(first: tuple[Path, Run]) -> None:
    folder, run = first
    report = load_report(Workspace(folder))
    text = run.artifacts["compress-report"]
    assert text.startswith(headline_words(report))
    assert all(size(report.steps[name].metrics.bytes) in text for name in STEPS)


def test_a_failing_step_is_named_and_stops_only_what_needs_it(workspace: Path) -> None:
    change(workspace, "share: 0.2", "share: 0.3")
    change(
        workspace,
        "temperature: 2\n      tune:\n",
        "temperature: 2\n      tune:\n        optimizer: sgd\n        learning_rate: 1.0e+30\n",
    )
    run = run_flow(workspace)
    assert (run.state.name, run.state.message) == ("Failed", "failed: student; not run: report")
    tasks = run.tasks
    assert {name: task.state_name for name, task in tasks.items()} == dict.fromkeys(STAGES, "Completed") | {
        "student": "Failed",
        "report": "NotReady",
    }
    state = tasks["student"].state
    assert state is not None
    assert "pipeline.student" in str(state.message)
    assert "to mend it: lower the learning rate" in str(state.message)
    assert "Traceback" not in run.text
    assert executed(run.text) == ["clipped", "student"]


def test_a_mistake_in_the_recipe_is_told_before_anything_runs(workspace: Path) -> None:
    change(workspace, "      clip:\n", "      clipp:\n")
    run = run_flow(workspace)
    assert run.state.is_failed()
    assert "pipeline.clipped" in str(run.state.message)
    assert "'clipp'" in str(run.state.message)
    assert "did you mean 'clip'?" in str(run.state.message)
    assert run.tasks == {}
    assert "Traceback" not in run.text


def test_steps_run_at_one_time_as_cores_and_devices_allow(
    first: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    settings = read_recipe(first[0] / "params.yaml").settings
    found = [width(settings.model_copy(update={"threads": threads})) for threads in (1, 3, 8, 16)]
    assert found == [8, 2, 1, 1]
    assert width(settings.model_copy(update={"device": "cuda"})) == 1


def test_less_than_one_step_at_one_time_is_refused(first: tuple[Path, Run]) -> None:
    state = compress_model(first[0], at_once=0, return_state=True)
    assert state.is_failed()
    assert "greater than or equal to 1" in str(state.message)


def test_a_folder_without_a_recipe_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    run = run_flow(tmp_path)
    assert run.state.is_failed()
    assert str(tmp_path / "params.yaml") in str(run.state.message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_whoever_else_works_in_the_workspace_is_waited_for(workspace: Path, server: str) -> None:
    make_student_wait(workspace)
    with started(workspace, sys.executable, "-m", "dvc", "repro") as dvc:
        wait_for(lambda: begun(workspace))
        with started(workspace, *FLOW, PREFECT_API_URL=server) as one:
            one.wait_for("another process is at work on the files of this stage")
            with started(workspace, *FLOW, PREFECT_API_URL=server) as two:
                two.wait_for("another flow run is at work in")
                go(workspace)
                assert (dvc.end(), one.end(), two.end()) == (0, 0, 0), dvc.text + one.text + two.text
    assert executed(dvc.text + one.text) == ["student"]
    assert executed(two.text) == []


@pytest.mark.slow
def test_a_killed_flow_leaves_no_process_and_the_next_one_finishes_the_rest(workspace: Path, server: str) -> None:
    make_student_wait(workspace)
    with started(workspace, *FLOW, PREFECT_API_URL=server) as flow:
        wait_for(lambda: begun(workspace))
        assert any(command.endswith("compress_core.stage student") for command in stages_in(workspace))
        flow.process.kill()
        wait_for(lambda: not stages_in(workspace))
    go(workspace)
    run = run_flow(workspace)
    assert run.state.is_completed()
    assert executed(run.text) == ["student"]
