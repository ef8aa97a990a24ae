"""Commands that never outlive the process that started them, whose output arrives line by line.

Each command runs under a supervisor, `python -m compress_core.processes COMMAND...`, in a process group of its
own. The supervisor reads a pipe that only the parent holds open: when the parent closes it or dies, even by
SIGKILL, the pipe ends, and the supervisor stops the command's whole group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from compress_core.errors import CompressError

GRACE = 5.0
"""Seconds between asking a process group to end and killing it."""
TAIL = 30
"""Lines of a failed command that its error keeps."""

_running: set[subprocess.Popen[str]] = set()


class CommandError(CompressError):
    """A command has ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, tail: Sequence[str]) -> None:
        super().__init__(f"{' '.join(command)!r} ended with status {status}", mend="its last lines say more")
        self.status = status
        self.tail = tuple(tail)


def lines(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a command in a folder and give what it prints, errors included, line by line.

    Raises:
        CommandError: it ended with another status than 0.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "compress_core.processes", *command],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=TAIL)
    _running.add(process)
    try:
        for line in process.stdout:
            tail.append(line.rstrip())
            yield tail[-1]
        status = process.wait()
    finally:
        _running.discard(process)
        _stop(process)
    if status:
        raise CommandError(command, status, tail)


def stop_all() -> None:
    """Stop every command that `lines` has started in this process."""
    for process in list(_running):
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """Close the pipe that keeps a command alive, and wait until it is gone."""
    assert process.stdin is not None
    if not process.stdin.closed:
        process.stdin.close()
    process.wait()


def supervise(command: Sequence[str]) -> int:
    """Run a command until it ends or standard input does; the exit status."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"error: {command[0]!r} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    orphaned = threading.Event()
    watch = threading.Thread(target=_stop_with_parent, args=(child.pid, orphaned), daemon=True)
    watch.start()
    status = child.wait()
    if orphaned.is_set():
        watch.join()
    return status if status >= 0 else 128 - status


def _stop_with_parent(group: int, orphaned: threading.Event) -> None:
    """Wait for the end of standard input, then stop a process group."""
    while os.read(0, 4096):
        continue
    orphaned.set()
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        end = monotonic() + GRACE
        while monotonic() < end:
            os.killpg(group, 0)
            sleep(0.05)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
