"""The recipe of params.yaml as a Prefect flow: one task for each step, each step run by DVC.

A flow run and `dvc repro` do the same work and see each other's results. Copy this file and change it as you
like; all it needs of the recipe is the names of the steps and what each must wait for.

(No `from __future__ import annotations` here: Prefect could not resolve the flow's parameters when it serves it.)
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed
from pydantic import Field
from rich.console import Console

from compress_core.errors import CompressError
from compress_core.processes import CommandError, Commands
from compress_core.recipe import Recipe, Settings, read_recipe
from compress_core.report import Report, load_report
from compress_core.report.rendering import table
from compress_core.report.wording import headline_words
from compress_core.workspace import Workspace, ending_with_status

BUSY = "is busy, it is being blocked by:"
"""What DVC says when another process works on the same files: waited for, no failure."""
WAITS = [1.0, 2.0, 4.0, 8.0, 15.0]
"""Seconds until a busy stage is tried again; the last one stays."""
LAST_LINES = 5
"""Lines of a failed stage in the message of its state; all of them are in its log."""


def is_busy(task: object, task_run: object, state: State[None]) -> bool:
    """Whether a stage failed only because another process was at work on its files."""
    return state.name == "Busy"


@task(
    task_run_name="{name}", cache_policy=NO_CACHE, retries=10_000, retry_delay_seconds=WAITS, retry_condition_fn=is_busy
)
def reproduce(name: str, stage: str, commands: Commands) -> State[None]:
    """Run one stage of dvc.yaml if something has changed for it, and log what it prints."""
    logger = get_run_logger()
    try:
        for line in commands.lines(sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "repro", "-s", stage):
            if line:
                logger.info(line)
    except CommandError as error:
        printed = [line for line in error.tail if line]
        if any(BUSY in line for line in printed):
            return Failed(name="Busy", message="another process is at work on the files of this stage")
        return Failed(message="\n".join(printed[-LAST_LINES:]))
    return Completed(message=f"the stage {stage!r} is up to date")


@flow(name="compress-model")
def compress_model(workspace: Path = Path(), at_once: Annotated[int, Field(ge=1)] | None = None) -> State[None]:
    """Run what has changed of a workspace's recipe.

    Args:
        workspace: the folder with params.yaml and dvc.yaml.
        at_once: how many steps run at one time; unless given, as many as have cores of their own, and one where
            they share another device.
    """
    folder = workspace.resolve()
    params = Workspace(folder).params
    try:
        read_recipe(params)  # a mistake is told at once
        with alone(folder):
            recipe = read_recipe(params)  # it may have changed while this run waited
            with Commands(folder, at_once or width(recipe.settings)) as commands:
                futures = submit(recipe, commands)
                for future in futures.values():
                    future.wait()
            result = outcome({name: future.state for name, future in futures.items()})
            if result.is_completed():
                show(load_report(Workspace(folder)))
    except CompressError as error:
        return Failed(message=str(error))
    return result


def width(settings: Settings) -> int:
    """How many steps can run at one time without being in each other's way."""
    return max(1, (os.cpu_count() or 1) // settings.threads) if settings.device == "cpu" else 1


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one flow run at a time work in a folder; the lock goes with the process that holds it."""
    place = folder / ".compress" / "flow.lock"
    place.parent.mkdir(exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        get_run_logger().info("another flow run is at work in %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def submit(recipe: Recipe, commands: Commands) -> dict[str, PrefectFuture[State[None]]]:
    """Submit every stage, each behind those it needs."""
    futures: dict[str, PrefectFuture[State[None]]] = {}

    def add(name: str, stage: str, *needs: str) -> None:
        before = [futures[need] for need in needs]
        futures[name] = reproduce.submit(name, stage, commands, return_state=False, wait_for=before)

    add("lock", "lock")
    add("data", "data", "lock")
    for step in recipe.steps.values():
        add(step.name, f"step@{step.name}", "data", *step.needs)
    add("report", "report", *recipe.steps)
    return futures


def outcome(states: dict[str, State[None]]) -> State[None]:
    """The state of the flow run: failed, with the names of the stages, if one of them is not completed."""
    missed = [name for name, state in states.items() if state.is_pending()]
    failed = [name for name, state in states.items() if not state.is_completed() and name not in missed]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}; not run: {', '.join(missed) or 'none'}")
    return Completed(message=f"all {len(states)} stages are up to date")


def show(report: Report) -> None:
    """Put the report among the artifacts of the flow run, as `compress report` prints it."""
    console = Console(file=StringIO(), record=True, width=100)
    console.print(table(report))
    text = f"{headline_words(report)}\n```text\n{console.export_text()}```"
    create_markdown_artifact(text, key="compress-report", description="All steps side by side")


def main() -> bool:
    """Run the recipe of the working directory, with a server for this run alone where none answers."""
    with get_client(sync_client=True) as client:
        silent = client.api_healthcheck() is not None
    if silent:
        print(f"no Prefect server answers at {PREFECT_API_URL.value()}: one is started for this run", flush=True)
    with temporary_settings({PREFECT_API_URL: None} if silent else {}):
        return compress_model(return_state=True).is_completed()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that its own server ends as well
    with ending_with_status():
        sys.exit(not main())
