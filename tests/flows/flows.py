"""Flow runs of a small recipe, in this process and in others, and a step that waits for the test."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.workspaces import HEAD, environment, make_workspace

PATIENCE = 240.0
"""Seconds within which anything happens on a machine that is busy with other things."""

STEPS = ("baseline", "clipped", "student")

FLOW = (sys.executable, "flows/compress_model.py")
"""The flow as a script."""

RECIPE = f"""\
{HEAD}  baseline:
    input: none
    teacher: none
    use:
      tune:
        epochs: 1
  clipped:
    input: baseline
    teacher: none
    use:
      clip:
        share: 0.2
  student:
    input: none
    teacher: baseline
    model:
      factory: gate:build
    use:
      distill:
        temperature: 2
      tune:
        epochs: 1
"""
"""Two branches behind one step."""

GATE = """
import time
from pathlib import Path

from torch import nn

def build():
    while not Path("go").exists():
        Path("begun").touch()
        time.sleep(0.05)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""
"""The network of the step `student`, which goes on when the test says so."""


def make_flow_workspace(folder: Path) -> Path:
    """Lay a workspace with `RECIPE` out, whose student does not wait."""
    make_workspace(folder, RECIPE)
    (folder / "gate.py").write_text(GATE)
    go(folder)
    return folder


def touch_student(folder: Path) -> None:
    """Change the code of the step `student`, which then has to run again, and does so with the same result."""
    with (folder / "gate.py").open("a") as file:
        file.write("# another line\n")


def make_student_wait(folder: Path) -> None:
    """Let the step `student` run again, and wait until `go(folder)`."""
    touch_student(folder)
    (folder / "go").unlink()


def begun(folder: Path) -> bool:
    """Whether the step `student` waits."""
    return (folder / "begun").exists()


def go(folder: Path) -> None:
    """Let the step `student` go on."""
    (folder / "go").touch()


def wait_for(what: Callable[[], object]) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s"
        time.sleep(0.1)


def stages_in(folder: Path) -> list[str]:
    """The commands of DVC and of its stages that run in a folder, supervisors included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = " ".join(process.cmdline())
            if process.cwd() == str(folder) and ("-m dvc" in command or "-m compress_core" in command):
                found.append(command)
    return found


@dataclass
class Started:
    """A process that the test has started; what it prints lies in a file."""

    process: subprocess.Popen[bytes]
    printed: Path

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.printed.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until it prints something."""
        wait_for(lambda: text in self.text or self.process.poll() is not None)
        assert text in self.text, f"ended with {self.process.returncode} without {text!r}:\n{self.text}"

    def end(self) -> int:
        """Wait until it ends; its exit status."""
        return self.process.wait(PATIENCE)


@contextmanager
def started(folder: Path, *command: str, **variables: str) -> Iterator[Started]:
    """A command that runs in a workspace, and does not outlive the test."""
    printed = folder.parent / f"printed-{time.monotonic_ns()}"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment(**variables)
        )
    try:
        yield Started(process, printed)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE / 4)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def executed(printed: str) -> list[str]:
    """The steps that DVC ran according to logs, `lock` left out, in order of their names."""
    found = (name.removeprefix("step@") for name in re.findall(r"Running stage '(.*?)'", printed))
    return sorted(name for name in found if name != "lock")
