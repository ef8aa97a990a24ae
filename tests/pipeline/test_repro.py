"""The recipe through DVC: what runs again, and what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
from sklearn.datasets import load_digits

from compress_core.files import digest
from tests.workspaces import SMALL, change, executed, make_workspace, repro, run

STEPS = ("baseline", "clipped", "onnx", "student")

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""

PLUGIN = """
from compress_core import Technique, hookimpl

class Shrink(Technique):
    \"\"\"Multiply every weight by a number.\"\"\"

    name = "shrink"

    def apply(self, model, run):
        for parameter in model.parameters():
            parameter.data.mul_(0.50)
        return model

@hookimpl
def register_techniques():
    return [Shrink]
"""


def hashes(folder: Path, *steps: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): digest(path)
        for step in steps
        for path in sorted((folder / "artifacts" / step).rglob("*"))
        if path.is_file()
    }


def test_every_step_leaves_an_artifact_metrics_and_runs(finished: Path) -> None:
    for step in STEPS:
        metrics = json.loads((finished / "metrics" / f"{step}.json").read_text())
        assert {"quality", "bytes", "parameters", "nonzero", "macs"} <= set(metrics)
        assert metrics["quality"]["low"] < metrics["quality"]["value"] < metrics["quality"]["high"]
        listed = json.loads((finished / "artifacts" / step / "manifest.json").read_text())["files"]
        assert metrics["bytes"] >= sum(entry["bytes"] for entry in listed.values())
        assert list((finished / "runs" / step).iterdir()), f"runs/{step} is empty"
    report = json.loads((finished / "report" / "report.json").read_text())
    assert set(STEPS) <= set(report["steps"])


def test_a_second_run_does_nothing(workspace: Path) -> None:
    assert repro(workspace) == []


def test_a_changed_parameter_runs_its_step_and_those_behind_it(workspace: Path) -> None:
    before = hashes(workspace, "baseline", "student")
    change(workspace, "share: 0.2", "share: 0.4")
    assert repro(workspace) == ["clipped", "onnx", "report"]
    assert hashes(workspace, "baseline", "student") == before


def test_a_parameter_changed_back_restores_the_old_result_without_work(workspace: Path) -> None:
    before = hashes(workspace, *STEPS)
    change(workspace, "share: 0.2", "share: 0.4")
    repro(workspace, "step@onnx")
    change(workspace, "share: 0.4", "share: 0.2")
    assert repro(workspace, "step@onnx") == []
    assert hashes(workspace, *STEPS) == before


def test_deleted_artifacts_come_back_from_the_cache(workspace: Path) -> None:
    before = hashes(workspace, *STEPS)
    shutil.rmtree(workspace / "artifacts")
    assert repro(workspace) == []
    assert hashes(workspace, *STEPS) == before


def test_two_workspaces_have_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    other = make_workspace(tmp_path / "other")
    repro(other, "step@onnx", "step@student")
    assert hashes(other, "data", *STEPS) == hashes(finished, "data", *STEPS)


def test_an_edited_model_file_runs_the_steps_that_use_it_though_its_size_stays(tmp_path: Path) -> None:
    own = "    teacher: none\n    model:\n      factory: mynet:build\n"
    recipe = SMALL.replace("    teacher: baseline\n", own).replace("      distill:\n        temperature: 2\n", "")
    folder = make_workspace(tmp_path / "workspace", recipe)
    (folder / "mynet.py").write_text(NET)
    repro(folder, "step@onnx", "step@student")
    for width in ("17", "18", "19"):
        (folder / "mynet.py").write_text(NET.replace("16", width))
        assert repro(folder, "step@onnx", "step@student") == ["student"]


def test_an_edited_data_file_makes_the_data_and_all_steps_anew_though_its_size_stays(tmp_path: Path) -> None:
    recipe = SMALL[: SMALL.index("  onnx:")].replace("source: digits", "source: npz\n  path: own.npz")
    folder = make_workspace(tmp_path / "workspace", recipe)
    digits = load_digits()
    image, label = digits.images[:, None].astype("float32") / 16, digits.target
    numpy.savez(folder / "own.npz", image=image, label=label)
    size = (folder / "own.npz").stat().st_size
    assert repro(folder, "step@clipped") == ["data", "baseline", "clipped"]
    assert repro(folder, "step@clipped") == []
    numpy.savez(folder / "own.npz", image=image[::-1].copy(), label=label[::-1].copy())
    assert (folder / "own.npz").stat().st_size == size
    assert repro(folder, "step@clipped") == ["data", "baseline", "clipped"]


def test_an_edited_plugin_runs_the_steps_that_use_it_though_its_size_stays(tmp_path: Path) -> None:
    recipe = SMALL.replace("      clip:\n        share: 0.2\n", "      shrink:\n")
    folder = make_workspace(tmp_path / "workspace", recipe)
    plugins = tmp_path / "plugins"
    info = plugins / "shrink-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shrink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[compress]\nshrink = shrink\n")
    (plugins / "shrink.py").write_text(PLUGIN)
    printed = run(folder, "dvc", "repro", "step@onnx", "step@student", PYTHONPATH=str(plugins))
    assert set(executed(printed)) == {"data", *STEPS}
    for factor in ("0.51", "0.52"):
        (plugins / "shrink.py").write_text(PLUGIN.replace("0.50", factor))
        printed = run(folder, "dvc", "repro", "step@onnx", "step@student", PYTHONPATH=str(plugins))
        assert executed(printed) == ["clipped", "onnx"]


def test_a_failing_step_is_named_and_leaves_finished_ones_as_they_are(workspace: Path) -> None:
    before = hashes(workspace, "baseline", "clipped", "onnx")
    change(
        workspace,
        "        epochs: 1\n",
        "        epochs: 1\n        optimizer: sgd\n        learning_rate: 1.0e+30\n",
    )
    printed = run(workspace, "dvc", "repro", status=255)
    assert "pipeline.student" in printed
    assert "to mend it: lower the learning rate" in printed
    assert hashes(workspace, "baseline", "clipped", "onnx") == before
    assert not (workspace / "artifacts" / "student").exists()
    assert not [path for path in (workspace / "artifacts").iterdir() if path.name.endswith(".part")]


def test_a_removed_step_can_be_cleaned_away(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text[: text.index("  student:")])
    listed = run(workspace, "compress", "clean", "--dry-run")
    assert [f"{place}/student" in listed for place in ("artifacts", "metrics", "runs")] == [True] * 3
    assert (workspace / "artifacts" / "student").is_dir()
    run(workspace, "compress", "clean")
    left = {path.stem for place in ("artifacts", "metrics", "runs") for path in (workspace / place).iterdir()}
    assert "student" not in left
    assert {"baseline", "clipped", "onnx"} <= left
