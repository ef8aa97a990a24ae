"""The recipe of params.yaml as a Prefect flow: one task for each step, each step run by DVC.

A flow run and `dvc repro` do the same work and see each other's results. Copy this file and change it as you
like; all it needs of the recipe is the names of the steps and what each must wait for.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import Semaphore

from filelock import FileLock, Timeout
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from compress_core.processes import CommandError, lines, stop_all
from compress_core.recipe import Recipe, read_recipe
from compress_core.workspace import Workspace

BUSY = "is busy"
"""What DVC says when another process works on the same files: waited for, no failure."""


class StageError(Exception):
    """A stage has failed; the message ends with its last lines."""

    def __init__(self, stage: str, tail: tuple[str, ...]) -> None:
        super().__init__("\n".join([f"the stage {stage!r} failed", *tail]))
        self.busy = any(BUSY in line for line in tail)


def is_busy(task: object, task_run: object, state: State[None]) -> bool:
    """Whether a stage failed only because another process was at work on its files."""
    return isinstance(state.data, StageError) and state.data.busy


@task(task_run_name="{name}", cache_policy=NO_CACHE, retries=600, retry_delay_seconds=2, retry_condition_fn=is_busy)
def reproduce(name: str, stage: str, folder: Path, gate: Semaphore) -> None:
    """Run one stage of dvc.yaml if something has changed for it, and log what it prints."""
    logger = get_run_logger()
    try:
        with gate:
            for line in lines([sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", stage], folder):
                if line:
                    logger.info(line)
    except CommandError as error:
        raise StageError(stage, error.tail) from None


@flow(name="compress-model")
def compress_model(workspace: Path = Path(), at_once: int | None = None) -> State[None]:
    """Run what has changed of a workspace's recipe.

    Args:
        workspace: the folder with params.yaml and dvc.yaml.
        at_once: how many steps run at one time; unless given, as many as have cores of their own.
    """
    folder = workspace.resolve()
    recipe = read_recipe(Workspace(folder).params)
    width = at_once or max(1, (os.cpu_count() or 1) // recipe.settings.threads)
    with alone(folder):
        try:
            futures = submit(recipe, folder, Semaphore(width))
            for future in futures.values():
                future.wait()
        except BaseException:
            stop_all()
            raise
    return outcome({name: future.state for name, future in futures.items()})


def submit(recipe: Recipe, folder: Path, gate: Semaphore) -> dict[str, PrefectFuture[None]]:
    """Submit every stage, each behind those it needs."""
    futures: dict[str, PrefectFuture[None]] = {}

    def add(name: str, stage: str, *needs: str) -> None:
        futures[name] = reproduce.submit(name, stage, folder, gate, wait_for=[futures[need] for need in needs])

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


def alone(folder: Path) -> FileLock:
    """A lock that lets one flow run at a time work in a folder; it goes with the process that holds it."""
    place = folder / ".compress" / "flow.lock"
    place.parent.mkdir(exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        get_run_logger().info("another flow run is at work in %s: waiting for it", folder)
    return lock


if __name__ == "__main__":
    compress_model()
