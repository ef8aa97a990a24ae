"""A Prefect server of the tests' own, and a workspace that a flow run has finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.client.schemas.objects import Log, State, TaskRun
from prefect.client.schemas.sorting import LogSort
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from flows.compress_model import compress_model
from tests.flows.flows import make_flow_workspace, wait_for


@dataclass(frozen=True)
class Run:
    """A flow run as its server knows it."""

    id: UUID

    @property
    def state(self) -> State:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(self.id).state
        assert state is not None
        return state

    @property
    def tasks(self) -> dict[str, TaskRun]:
        """The task runs by their names; all of them have arrived."""
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [self.id]}}))
        return {run.name: run for run in found}

    @property
    def artifacts(self) -> dict[str, str]:
        """What the flow run shows, by key."""
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [self.id]}}))
        return {str(artifact.key): str(artifact.data) for artifact in found}

    def logs(self, task: str) -> list[str]:
        """The lines of a task run."""
        run = self.tasks[task].id
        return [log.message for log in self._logs() if log.task_run_id == run]

    @property
    def text(self) -> str:
        """The lines of the flow run and of all its task runs."""
        return "\n".join(log.message for log in self._logs())

    @property
    def logged_all(self) -> bool:
        """Whether the flow run's last line has arrived."""
        return any(log.message.startswith("Finished in state") for log in self._logs() if log.task_run_id is None)

    def _logs(self) -> list[Log]:
        which = LogFilter.model_validate({"flow_run_id": {"any_": [self.id]}})
        with get_client(sync_client=True) as client:
            return client.read_logs(which, limit=200, sort=LogSort.TIMESTAMP_ASC)


def run_flow(folder: Path) -> Run:
    """Run the flow in this process, until the server has all that was logged."""
    state = compress_model(folder, return_state=True)
    assert state.state_details.flow_run_id is not None
    run = Run(state.state_details.flow_run_id)
    wait_for(lambda: run.logged_all)
    return run


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[str]:
    """The address of a server for these tests alone."""
    with prefect_test_harness(server_startup_timeout=120):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def first(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A workspace and the flow run that has finished it. Not to be changed."""
    folder = make_flow_workspace(tmp_path_factory.mktemp("finished") / "workspace")
    return folder, run_flow(folder)


@pytest.fixture
def workspace(first: tuple[Path, Run], tmp_path: Path) -> Path:
    """A finished workspace of the test's own."""
    return Path(shutil.copytree(first[0], tmp_path / "workspace", symlinks=True))
