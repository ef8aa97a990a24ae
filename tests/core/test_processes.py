"""Commands whose output arrives line by line, and which never outlive the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from compress_core.processes import TAIL, CommandError, lines, stop_all

SECONDS = 15.0


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_output_and_errors_arrive_as_lines_while_the_command_runs(tmp_path: Path) -> None:
    found = lines(["sh", "-c", "echo one; echo two >&2; read never; pwd"], tmp_path)
    assert [next(found), next(found), next(found)] == ["one", "two", str(tmp_path)]
    assert next(found, None) is None


def test_a_failure_keeps_its_status_and_last_lines(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as error:
        list(lines(["sh", "-c", f"seq 1 {2 * TAIL}; exit 7"], tmp_path))
    assert error.value.status == 7
    assert error.value.tail == tuple(str(number) for number in range(TAIL + 1, 2 * TAIL + 1))


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as error:
        list(lines(["no-such-command"], tmp_path))
    assert error.value.status == 127
    assert "'no-such-command' cannot be started" in error.value.tail[-1]


def test_leaving_the_loop_stops_the_command_and_its_children(tmp_path: Path) -> None:
    found = lines(["sh", "-c", "sleep 600 & echo $!; wait"], tmp_path)
    pid = int(next(found))
    found.close()
    assert wait_until_gone(pid)


def test_stop_all_stops_a_command_that_ignores_a_polite_request(tmp_path: Path) -> None:
    found = lines([sys.executable, "-c", STUBBORN], tmp_path)
    pid = int(next(found))
    stop_all()
    assert wait_until_gone(pid)
    with pytest.raises(CommandError) as error:
        list(found)
    assert error.value.status == 128 + signal.SIGKILL


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""

PARENT = """
from pathlib import Path
from compress_core.processes import lines
for line in lines(["sh", "-c", "sleep 600 & echo $!; wait"], Path()):
    print(line, flush=True)
"""


def test_a_killed_parent_takes_its_commands_along(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_until_gone(pid)
    parent.stdout.close()
