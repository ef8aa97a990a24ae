"""The flow: the same work as `dvc repro`, seen by Prefect."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from compress_core.recipe import read_recipe
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


def test_after_dvc_repro_a_flow_run_runs_nothing(workspace: Path) -> None:
    change(workspace, "share: 0.2", "share: 0.4")
    assert repro(workspace) == ["clipped", "report"]
    run = run_flow(workspace)
    assert run.state.is_completed()
    assert executed(run.text) == []
    for name in STEPS:
        assert f"Stage 'step@{name}' didn't change, skipping" in run.logs(name)


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
def test_a_step_that_dvc_runs_already_is_waited_for(workspace: Path, server: str) -> None:
    make_student_wait(workspace)
    with started(workspace, sys.executable, "-m", "dvc", "repro") as dvc:
        wait_for(lambda: begun(workspace))
        with started(workspace, *FLOW, PREFECT_API_URL=server) as flow:
            flow.wait_for("another process is at work on the files of this stage")
            go(workspace)
            assert dvc.end() == 0, dvc.text
            assert flow.end() == 0, flow.text
    assert executed(dvc.text + flow.text) == ["report", "student"]


@pytest.mark.slow
def test_two_flow_runs_in_one_workspace_wait_for_each_other(workspace: Path, server: str) -> None:
    make_student_wait(workspace)
    with started(workspace, *FLOW, PREFECT_API_URL=server) as one:
        wait_for(lambda: begun(workspace))
        with started(workspace, *FLOW, PREFECT_API_URL=server) as two:
            two.wait_for("another flow run is at work in")
            go(workspace)
            assert (one.end(), two.end()) == (0, 0), one.text + two.text
    assert executed(one.text) == ["report", "student"]
    assert executed(two.text) == []


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_flow_leaves_no_process_and_the_next_one_finishes_the_rest(
    workspace: Path, server: str, sent: int
) -> None:
    make_student_wait(workspace)
    with started(workspace, *FLOW, PREFECT_API_URL=server) as flow:
        wait_for(lambda: begun(workspace))
        assert {"compress_core.stage student" in command for command in stages_in(workspace)}
        flow.process.send_signal(sent)
        flow.end()
        wait_for(lambda: not stages_in(workspace))
    go(workspace)
    run = run_flow(workspace)
    assert run.state.is_completed()
    assert executed(run.text) == ["report", "student"]
