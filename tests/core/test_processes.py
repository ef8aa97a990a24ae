"""Commands whose output arrives line by line, and which never outlive the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from compress_core.processes import TAIL, CommandError, Commands

SECONDS = 20.0

SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""

POLITE = """
import time
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    open("tidied", "w").close()
"""

PARENT = """
import signal
from pathlib import Path
from compress_core.processes import Commands
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
with Commands(Path(), 1) as commands:
    for line in commands.lines("sh", "-c", "sleep 600 & echo $!; wait"):
        print(line, flush=True)
"""


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    with Commands(tmp_path, at_once=2) as made:
        yield made


def test_output_and_errors_arrive_as_lines_while_the_command_runs(commands: Commands) -> None:
    fifo = commands.folder / "fifo"
    os.mkfifo(fifo)
    found = commands.lines("sh", "-c", "echo one; echo two >&2; read never < fifo; echo; pwd")
    assert [next(found), next(found)] == ["one", "two"]
    fifo.write_text("go on\n")
    assert list(found) == ["", str(commands.folder)]


def test_python_is_the_one_that_runs_the_caller(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (found,) = commands.lines("sh", "-c", "python -c 'import sys; print(sys.prefix)'")
    assert found == sys.prefix


def test_a_file_of_the_folder_takes_no_module_of_python_away(commands: Commands) -> None:
    (commands.folder / "signal.py").write_text("raise SystemExit('the wrong module')")
    assert list(commands.lines("echo", "well")) == ["well"]


def test_a_failure_keeps_its_status_and_last_lines(commands: Commands) -> None:
    with pytest.raises(CommandError) as error:
        list(commands.lines("sh", "-c", f"seq 1 {2 * TAIL}; exit 7"))
    assert error.value.status == 7
    assert error.value.tail == tuple(str(number) for number in range(TAIL + 1, 2 * TAIL + 1))


def test_a_command_that_does_not_exist_is_named(commands: Commands) -> None:
    with pytest.raises(CommandError) as error:
        list(commands.lines("no-such-command"))
    assert error.value.status == 127
    assert "'no-such-command' cannot be started" in error.value.tail[-1]


def test_no_more_run_at_one_time_than_was_said(commands: Commands) -> None:
    count = "mkdir $0 && sleep 0.2 && echo run-* | wc -w && rmdir $0"

    def most(number: int) -> int:
        return max(int(line) for line in commands.lines("sh", "-c", count, f"run-{number}"))

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(most, range(6))) == 2


def test_leaving_the_loop_stops_the_command(commands: Commands) -> None:
    found = commands.lines(sys.executable, "-c", SLEEPER)
    pid = int(next(found))
    found.close()
    assert wait_until_gone(pid)


def test_a_stopped_command_may_tidy_up(commands: Commands) -> None:
    found = commands.lines(sys.executable, "-c", POLITE)
    assert next(found) == "ready"
    commands.stop()
    assert (commands.folder / "tidied").exists()


def test_a_command_may_tidy_up_even_where_interrupts_are_ignored(tmp_path: Path) -> None:
    script = f"""
import signal
from pathlib import Path
from compress_core.processes import Commands
signal.signal(signal.SIGINT, signal.SIG_IGN)
with Commands(Path(), 1) as commands:
    next(commands.lines({sys.executable!r}, "-c", {POLITE!r}))
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "tidied").exists()


def test_a_command_that_ignores_requests_is_killed_and_none_begins_after_it(commands: Commands) -> None:
    found = commands.lines(sys.executable, "-c", STUBBORN)
    pid = int(next(found))
    commands.stop()
    assert wait_until_gone(pid)
    with pytest.raises(CommandError) as error:
        list(found)
    assert error.value.status == 128 + signal.SIGKILL
    with pytest.raises(CommandError) as error:
        list(commands.lines("touch", "begun"))
    assert error.value.tail == ("stopped before it began",)
    assert not (commands.folder / "begun").exists()


def test_stopping_some_commands_leaves_those_of_others(commands: Commands, tmp_path: Path) -> None:
    with Commands(tmp_path, at_once=1) as others:
        sleeping = others.lines(sys.executable, "-c", SLEEPER)
        pid = int(next(sleeping))
        found = commands.lines("sh", "-c", "echo one; sleep 1; echo two")
        next(found)
        others.stop()
        assert wait_until_gone(pid)
        assert list(found) == ["two"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_parent_takes_its_commands_along(sent: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.send_signal(sent)
    parent.wait(SECONDS)
    assert wait_until_gone(pid)
    parent.stdout.close()
