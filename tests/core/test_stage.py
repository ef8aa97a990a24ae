"""One step of a recipe: what it leaves, what it tells, and what it leaves alone when it fails or is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress_core import artifact, hookimpl
from compress_core.artifact import load
from compress_core.catalog import catalog
from compress_core.data import batches, load_splits
from compress_core.errors import CompressError, TrainingError
from compress_core.files import digest
from compress_core.measure import quality
from compress_core.stage import factories, flat, run_stage
from compress_core.workspace import Workspace
from tests.doors import call, contents, lay_out, recipe_of
from tests.workspaces import SMALL, change, environment

STEPS = ("baseline", "clipped", "student")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with finished steps. Not to be changed."""
    return lay_out(tmp_path_factory.mktemp("made") / "workspace", *STEPS)


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that is the working directory."""
    folder = Path(shutil.copytree(made, tmp_path / "workspace"))
    monkeypatch.chdir(folder)
    return folder


def run(folder: Path, step: str) -> list[str]:
    """Run a step; what it printed."""
    printed: list[str] = []
    run_stage(recipe_of(folder), step, Workspace(folder), printer=printed.append)
    return printed


def metrics_of(folder: Path, step: str) -> dict[str, Any]:
    return json.loads((folder / "metrics" / f"{step}.json").read_text())


def manifest_of(folder: Path, step: str) -> dict[str, Any]:
    return json.loads((folder / "artifacts" / step / "manifest.json").read_text())


def test_metrics_are_what_the_artifact_is(made: Path) -> None:
    found = metrics_of(made, "clipped")
    assert set(found) == {"quality", "bytes", "parameters", "nonzero", "macs", "notes", "curves"}
    assert (found["parameters"], found["macs"]) == (64 * 16 + 16 + 16 * 10 + 10, 64 * 16 + 16 * 10)
    kept = load(made / "artifacts" / "clipped")
    assert found["nonzero"] == sum(int(parameter.count_nonzero()) for parameter in kept.parameters())
    assert found["nonzero"] == found["parameters"] - int(0.2 * found["macs"])
    test = load_splits(made / "artifacts" / "data").test
    again = quality(kept, batches(test, 7), recipe_of(made).task)
    assert found["quality"] == again.to_dict()
    assert found["quality"]["examples"] == len(test)
    files = (made / "artifacts" / "clipped").iterdir()
    assert found["bytes"] == sum(file.stat().st_size for file in files)
    assert found["notes"] == ["clip: 236 of 1184 weights went; 236 are zero now"]


def test_an_export_is_measured_in_its_runtime_and_counted_as_the_network_that_went_in(here: Path) -> None:
    run(here, "onnx")
    found, source = metrics_of(here, "onnx"), metrics_of(here, "clipped")
    assert manifest_of(here, "onnx")["kind"] == "export"
    assert manifest_of(here, "onnx")["exporter"] == "onnx"
    assert [found[key] for key in ("parameters", "nonzero", "macs")] == [
        source[key] for key in ("parameters", "nonzero", "macs")
    ]
    assert found["quality"]["value"] == pytest.approx(source["quality"]["value"], abs=1 / found["quality"]["examples"])
    assert found["bytes"] == (here / "artifacts" / "onnx" / "model.onnx").stat().st_size
    assert list((here / "runs" / "onnx").iterdir())


def test_the_manifest_tells_where_the_network_comes_from(made: Path) -> None:
    found = manifest_of(made, "student")["provenance"]
    assert found["step"] == "student"
    assert found["seed"] == 0
    assert found["use"] == {"distill": {"temperature": 2}, "tune": {"epochs": 1}}
    assert found["input"] is None
    assert found["teacher"] == digest(made / "artifacts" / "baseline" / "manifest.json")
    assert set(found["plugins"]) == {"distill", "tune"}
    assert found["plugins"]["tune"].startswith("compress-core ")


def test_nothing_depends_on_the_place_the_time_or_what_ran_before(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)
    torch.rand(7)
    other = lay_out(tmp_path / "a" / "quite different" / "place", "baseline", "student", "clipped")
    for kind in ("artifacts", "metrics"):
        assert contents(other / kind) == contents(made / kind)
    texts = [path.read_text() for path in (made / "artifacts").rglob("manifest.json")]
    assert not [text for text in texts if str(made) in text or os.uname().nodename in text]


def test_another_seed_makes_another_network(made: Path, tmp_path: Path) -> None:
    other = lay_out(tmp_path / "other", "baseline", recipe=SMALL.replace("seed: 0", "seed: 1"))
    assert manifest_of(other, "baseline")["files"] != manifest_of(made, "baseline")["files"]


def test_a_step_that_changes_nothing_says_so(here: Path) -> None:
    change(here, "share: 0.2", "share: 0.0001")
    printed = run(here, "clipped")
    said = "the step changed nothing: its network is its input's, bit for bit"
    assert said in printed
    assert metrics_of(here, "clipped")["notes"][-1] == said
    assert all("changed nothing" not in note for note in metrics_of(here, "student")["notes"])


def test_a_step_with_a_network_of_its_own_starts_with_that(here: Path) -> None:
    change(
        here,
        "    teacher: baseline\n",
        "    teacher: baseline\n    model:\n      factory: compress_zoo:MLP\n      params:\n        widths: [8, 8]\n",
    )
    run(here, "student")
    assert manifest_of(here, "student")["params"] == {"widths": [8, 8]}
    assert metrics_of(here, "student")["macs"] == 64 * 8 + 8 * 8 + 8 * 10


def test_only_the_factories_of_the_recipe_are_trusted(here: Path) -> None:
    change(here, "    teacher: baseline\n", "    teacher: baseline\n    model:\n      factory: mynet:build\n")
    assert factories(recipe_of(here)) == {"compress_zoo:MLP", "mynet:build"}


def test_old_results_are_replaced_whole(here: Path) -> None:
    for kind in ("artifacts", "runs"):
        (here / kind / "clipped" / "left-over.txt").write_text("old")
    before = contents(here / "artifacts" / "baseline")
    run(here, "clipped")
    assert not list(here.rglob("left-over.txt"))
    assert contents(here / "artifacts" / "baseline") == before


def test_the_number_of_threads_is_the_recipes_while_a_step_runs(here: Path) -> None:
    before = torch.get_num_threads()
    change(here, "threads: 1", "threads: 2")
    seen: list[int] = []
    run_stage(recipe_of(here), "clipped", Workspace(here), printer=lambda text: seen.append(torch.get_num_threads()))
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


class Watcher:
    """Notes what it is told."""

    def __init__(self, told: list[tuple[str, Any]]) -> None:
        self.told = told

    @hookimpl
    def stage_started(self, stage: Any) -> None:
        self.told.append(("started", (stage.name, stage.folder, dict(stage.parameters))))

    @hookimpl
    def scalar_logged(self, stage: Any, name: str, value: float, step: int) -> None:
        self.told.append(("logged", (stage.name, name, value, step)))

    @hookimpl
    def stage_finished(self, stage: Any, model: nn.Module | None, metrics: Any) -> None:
        self.told.append(("finished", (stage.name, model, metrics)))

    @hookimpl
    def stage_failed(self, stage: Any, error: BaseException) -> None:
        self.told.append(("failed", (stage.name, error)))


@pytest.fixture
def told() -> Iterator[list[tuple[str, Any]]]:
    """What a watcher is told while the test runs."""
    found: list[tuple[str, Any]] = []
    catalog().manager.register(Watcher(found), name="test-watcher")
    try:
        yield found
    finally:
        catalog().manager.unregister(name="test-watcher")


def test_watchers_are_told_how_a_step_goes(here: Path, told: list[tuple[str, Any]]) -> None:
    run(here, "baseline")
    kinds = [kind for kind, _ in told]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"logged"}
    assert told[0][1] == (
        "baseline",
        here / "runs" / "baseline",
        {"tune.epochs": 2, "tune.learning_rate": 0.01},
    )
    name, model, metrics = told[-1][1]
    assert name == "baseline"
    assert isinstance(model, nn.Module)
    assert json.loads(json.dumps(metrics)) == metrics_of(here, "baseline")
    curves = {entry[1]: [] for kind, entry in told if kind == "logged"}
    for kind, entry in told:
        if kind == "logged":
            curves[entry[1]].append(entry[3])
    assert curves, "a training logs nothing"
    assert all(steps == sorted(set(steps)) for steps in curves.values())


def test_watchers_are_told_of_a_failure_before_it_goes_on(here: Path, told: list[tuple[str, Any]]) -> None:
    change(here, "        learning_rate: 0.01\n", "        learning_rate: 1.0e+30\n        optimizer: sgd\n")
    with pytest.raises(TrainingError) as caught:
        run(here, "baseline")
    assert caught.value.where.startswith(f"{here / 'params.yaml'}, pipeline.baseline")
    assert [kind for kind, _ in told if kind != "logged"] == ["started", "failed"]
    assert told[-1][1] == ("baseline", caught.value)


def test_an_error_that_is_no_users_mistake_is_told_and_keeps_its_traceback(
    here: Path, told: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("compress_core.stage.apply_techniques", broken)
    with pytest.raises(ZeroDivisionError):
        run(here, "clipped")
    assert told[-1][0] == "failed"


def test_a_watcher_that_fails_changes_no_result(here: Path, made: Path) -> None:
    class Broken:
        @hookimpl
        def stage_started(self, stage: Any) -> None:
            raise OSError("no network")

    catalog().manager.register(Broken(), name="broken-watcher")
    try:
        with pytest.warns(RuntimeWarning, match="'broken-watcher' failed in stage_started"):
            run(here, "clipped")
    finally:
        catalog().manager.unregister(name="broken-watcher")
    for kind in ("artifacts", "metrics"):
        assert contents(here / kind) == contents(made / kind)


def test_a_failed_step_leaves_what_was_finished(here: Path) -> None:
    before = [contents(here / kind) for kind in ("artifacts", "metrics")]
    change(here, "share: 0.2", "share: 0.2\n        skip: [nowhere]")
    with pytest.raises(CompressError, match="'nowhere'"):
        run(here, "clipped")
    assert [contents(here / kind) for kind in ("artifacts", "metrics")] == before


def test_a_step_that_is_stopped_while_it_writes_leaves_no_half_artifact(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(here / "artifacts")
    change(here, "share: 0.2", "share: 0.4")
    monkeypatch.setattr(artifact, "write_manifest", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    before_all = signal.signal(signal.SIGTERM, lambda signum, frame: pytest.fail("the step does not mind the signal"))
    try:
        ended = call("stage", "clipped")
    finally:
        signal.signal(signal.SIGTERM, before_all)
    assert ended.status == 128 + signal.SIGTERM
    assert ended.err == ""
    assert contents(here / "artifacts") == before


def test_a_step_that_is_stopped_while_it_trains_ends_at_once(here: Path) -> None:
    change(here, "        epochs: 2\n", "        epochs: 100000\n")
    before = [contents(here / kind) for kind in ("artifacts", "metrics")]
    command = [sys.executable, "-m", "compress_core.stage", "baseline"]
    process = subprocess.Popen(
        command, cwd=here, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.terminate()
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert [contents(here / kind) for kind in ("artifacts", "metrics")] == before
    assert any(b"SystemExit" in path.read_bytes() for path in (here / "runs" / "baseline").iterdir())


def test_nested_parameters_become_dotted_names() -> None:
    assert flat({"use": {"clip": {"share": 0.2, "skip": []}, "tune": {}}, "a": 1}) == {
        "use.clip.share": 0.2,
        "use.clip.skip": [],
        "a": 1,
    }
