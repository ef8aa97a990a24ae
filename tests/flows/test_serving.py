"""The commands of the README, typed in a workspace: with a server, and without one."""

from __future__ import annotations

import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from tests.flows.flows import (
    FLOW,
    STEPS,
    begun,
    executed,
    go,
    make_student_wait,
    stages_in,
    started,
    touch_student,
    wait_for,
)
from tests.workspaces import change, repro, run

RUN = ("prefect", "deployment", "run", "compress-model/local", "--watch")


@pytest.fixture
def port(workspace: Path) -> int:
    """A free port, at which the workspace expects its server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    change(workspace, "4200", str(number), "prefect.toml")
    return number


def answers(port: int) -> bool:
    with suppress(URLError, ConnectionError), urlopen(f"http://127.0.0.1:{port}/api/health") as answer:
        return bool(answer.status == 200)
    return False


@pytest.mark.slow
def test_a_served_flow_is_run_cancelled_and_run_again(workspace: Path, port: int, tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path / "home")}
    make_student_wait(workspace)
    with started(workspace, "prefect", "server", "start", "--port", str(port), **home):
        wait_for(lambda: answers(port))
        with started(workspace, sys.executable, "flows/serve.py", **home) as serving:
            serving.wait_for("'compress-model/local'")
            with started(workspace, *RUN, **home) as watched:
                wait_for(lambda: begun(workspace))
                assert any(command.endswith("compress_core.stage student") for command in stages_in(workspace))
                (flow_run,) = set(re.findall(r"flow-run/([0-9a-f-]{36})", watched.text))
                run(workspace, "prefect", "flow-run", "cancel", flow_run, **home)
                assert watched.end() == 1, watched.text
            assert "finished in state 'Cancelled'" in watched.text
            wait_for(lambda: not stages_in(workspace))
            assert "student" not in (workspace / ".dvc" / "tmp" / "rwlock").read_text()
            go(workspace)
            with started(workspace, *RUN, **home) as watched:
                assert watched.end() == 0, watched.text + serving.text
    assert repro(workspace) == []


@pytest.mark.slow
def test_where_no_server_answers_a_script_has_its_own_and_both_end_with_their_stages(
    workspace: Path, port: int, tmp_path: Path
) -> None:
    make_student_wait(workspace)
    with started(workspace, *FLOW, PREFECT_HOME=str(tmp_path / "home")) as flow:
        wait_for(lambda: begun(workspace))
        assert f"no Prefect server answers at http://127.0.0.1:{port}/api" in flow.text
        children = psutil.Process(flow.process.pid).children(recursive=True)
        assert any("uvicorn" in child.cmdline() for child in children)
        flow.process.terminate()
        assert flow.end() == 128 + signal.SIGTERM, flow.text
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []


@pytest.mark.slow
def test_a_script_has_nothing_to_do_after_dvc_repro(workspace: Path, server: str) -> None:
    touch_student(workspace)
    assert repro(workspace) == ["student"]
    with started(workspace, *FLOW, PREFECT_API_URL=server) as flow:
        assert flow.end() == 0, flow.text
    assert executed(flow.text) == []
    assert all(f"Stage 'step@{name}' didn't change, skipping" in flow.text for name in STEPS)


def test_a_script_that_fails_says_why_and_ends_with_status_1(workspace: Path, server: str) -> None:
    change(workspace, "      clip:\n", "      clipp:\n")
    with started(workspace, *FLOW, PREFECT_API_URL=server) as flow:
        assert flow.end() == 1
    assert "did you mean 'clip'?" in flow.text
    assert "Traceback" not in flow.text
