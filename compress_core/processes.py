"""Commands that never outlive the process that started them, whose output arrives line by line.

Each command runs under a supervisor, `python -m compress_core.processes COMMAND...`, in a process group of its
own. The supervisor reads a pipe that only the parent holds open: when the parent closes it or dies, even by
SIGKILL, the pipe ends, and the supervisor stops the command's whole group: by SIGINT first, on which DVC takes
its locks away and a training its half-written files, then by SIGTERM, then by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Lock, Semaphore, Thread
from time import monotonic, sleep
from types import TracebackType

from compress_core.errors import CompressError

GRACE = 3.0
"""Seconds that a process group has to end after each signal."""
TAIL = 30
"""Lines of a failed command that its error keeps."""
NOT_STARTED = 127
"""Exit status of a command that cannot be started, as shells have it."""


class CommandError(CompressError):
    """A command has ended with another status than 0, or may not start any more."""

    def __init__(self, command: Sequence[str], status: int, tail: Sequence[str]) -> None:
        super().__init__(f"{' '.join(command)!r} ended with status {status}", mend="its last lines say more")
        self.status = status
        self.tail = tuple(tail)


class Commands:
    """Commands in one folder; leaving the context stops those that still run, and lets no other begin.

    `python`, for them, is the one that runs this.

    Args:
        folder: their working directory.
        at_once: how many of them run at one time; another waits until one has ended.
    """

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder = folder
        self._gate = Semaphore(at_once)
        self._lock = Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def lines(self, *command: str) -> Iterator[str]:
        """Run a command and give what it prints, errors included, line by line.

        Raises:
            CommandError: it ended with another status than 0.
        """
        tail: deque[str] = deque(maxlen=TAIL)
        with self._gate:
            process = self._start(command)
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    tail.append(line.rstrip())
                    yield tail[-1]
                status = process.wait()
            finally:
                _end(process)
                process.stdout.close()
                self._running.discard(process)
        if status:
            raise CommandError(command, status, tail)

    def stop(self) -> None:
        """Stop every command that runs, and wait until it is gone."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _close(process)
        for process in running:
            process.wait()

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopped:
                raise CommandError(command, NOT_STARTED, ["stopped before it began"])
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "compress_core.processes", *command],
                cwd=self.folder,
                env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
            return process


def _close(process: subprocess.Popen[str]) -> None:
    """Close the pipe that keeps a command alive."""
    assert process.stdin is not None
    process.stdin.close()


def _end(process: subprocess.Popen[str]) -> None:
    _close(process)
    process.wait()


def supervise(command: Sequence[str]) -> int:
    """Run a command until it ends or standard input does; the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here would be ignored by the command
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"error: {command[0]!r} cannot be started: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    orphaned = Event()
    watch = Thread(target=_stop_with_parent, args=(child.pid, orphaned), daemon=True)
    watch.start()
    status = child.wait()
    if orphaned.is_set():
        watch.join()
    return status if status >= 0 else 128 - status


def _stop_with_parent(group: int, orphaned: Event) -> None:
    """Wait for the end of standard input, then stop a process group."""
    while os.read(0, 4096):
        continue
    orphaned.set()
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if _gone(group, sent):
            return


def _gone(group: int, sent: signal.Signals) -> bool:
    """Send a signal to a process group; whether it then ends in time."""
    end = monotonic() + GRACE
    try:
        os.killpg(group, sent)
        while monotonic() < end:
            os.killpg(group, 0)
            sleep(0.05)
    except ProcessLookupError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
