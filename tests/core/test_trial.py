"""A trial: one batch through every step, who fails and who waits for it, and a workspace that stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from compress_tasks.classification import Classification

from compress_core.errors import CompressError, DataError, ModelError, RecipeError
from compress_core.trial import Trial, try_recipe
from compress_core.workspace import Workspace
from tests.doors import call, contents, lay_out, recipe_of
from tests.workspaces import SMALL, change

EVAL_ONLY = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, image):
        if self.training:
            raise RuntimeError("boom")
        return super().forward(image)
"""

TWISTED = """
import torch
from torch import nn

class Twisted(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        x = image.flatten(1)
        return self.head(x) if float(x.sum()) > 0 else self.head(-x)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace where nothing ran, as the working directory."""
    folder = lay_out(tmp_path / "workspace")
    monkeypatch.chdir(folder)
    return folder


def tried(folder: Path) -> dict[str, Trial]:
    return {trial.step: trial for trial in try_recipe(recipe_of(folder), Workspace(folder))}


def without_export(folder: Path) -> None:
    change(folder, SMALL[SMALL.index("  onnx:") : SMALL.index("  student:")], "")


def test_every_step_is_tried_and_nothing_is_written(here: Path) -> None:
    before = contents(here)
    trials = tried(here)
    assert list(trials) == list(recipe_of(here).steps)
    assert all(trial.error is None and trial.waits_for is None for trial in trials.values())
    assert trials["clipped"].notes == ("clip: 236 of 1184 weights went; 236 are zero now",)
    assert contents(here) == before


def test_a_training_is_one_update_on_one_batch_however_long_it_would_be(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_export(here)
    change(here, "epochs: 2", "epochs: 1000000")
    updates: list[int] = []
    loss = Classification.loss

    def counting(self: Classification, output: object, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        updates.append(len(batch["label"]))
        return loss(self, output, batch)

    monkeypatch.setattr(Classification, "loss", counting)
    tried(here)
    assert updates == [64, 64]


def test_a_step_that_fails_keeps_those_behind_it_waiting_and_the_others_go_on(here: Path) -> None:
    change(here, "share: 0.2", "share: 0.2\n        skip: [nowhere]")
    trials = tried(here)
    assert trials["baseline"].error is None
    assert trials["student"].error is None
    assert str(trials["clipped"].error).startswith(f"{here / 'params.yaml'}, pipeline.clipped: ")
    assert trials["onnx"].waits_for == "clipped"
    assert trials["onnx"].error is None


def test_all_that_comes_behind_a_failure_waits_for_the_one_at_fault(here: Path) -> None:
    change(here, "compress_zoo:MLP", "compress_zoo:MLPs")
    trials = tried(here)
    assert isinstance(trials["baseline"].error, CompressError)
    assert "did you mean 'MLP'?" in str(trials["baseline"].error)
    assert {name: trial.waits_for for name, trial in trials.items()} == {
        "baseline": None,
        "clipped": "baseline",
        "student": "baseline",
        "onnx": "baseline",
    }


def test_a_network_that_cannot_be_exported_is_found(here: Path) -> None:
    (here / "twisted.py").write_text(TWISTED)
    change(here, "compress_zoo:MLP\n  params:\n    widths: [16]\n", "twisted:Twisted\n")
    ended = call("compress", "try", "--json")
    assert ended.status == 2
    works = {trial["step"]: trial["works"] for trial in json.loads(ended.out)}
    assert works == {"baseline": True, "clipped": True, "student": True, "onnx": False}
    assert ended.err.startswith("error: params.yaml, pipeline.onnx: ")
    assert "Traceback" not in ended.err


def test_a_network_that_cannot_be_saved_is_found(here: Path) -> None:
    without_export(here)
    (here / "strange.py").write_text(
        "from torch import nn\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)))\n"
    )
    change(here, "compress_zoo:MLP\n  params:\n    widths: [16]\n", "strange:build\n")
    ended = call("compress", "try")
    assert ended.status == 2
    assert "pipeline.baseline" in ended.err
    assert "parametriz" in ended.err


def test_every_failing_step_is_told_with_a_message_of_its_own(here: Path) -> None:
    without_export(here)
    change(here, "share: 0.2", "share: 0.2\n        skip: [nowhere]")
    change(here, "temperature: 2", "temperature: 2\n        hints: {hidden.1: elsewhere}")
    ended = call("compress", "try")
    assert ended.status == 2
    heads = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert [head.partition(": ")[2].partition(": ")[0] for head in heads] == [
        "params.yaml, pipeline.clipped",
        "params.yaml, pipeline.student",
    ]
    assert "'nowhere'" in heads[0]
    assert "'elsewhere'" in heads[1]
    assert "clipped: fails (" in ended.out
    assert "baseline: works (" in ended.out


def test_a_network_that_runs_only_in_eval_mode_is_found(here: Path) -> None:
    (here / "evalnet.py").write_text(EVAL_ONLY)
    change(here, "compress_zoo:MLP\n  params:\n    widths: [16]", "evalnet:Net")
    first = next(try_recipe(recipe_of(here), Workspace(here)))
    assert isinstance(first.error, ModelError)
    assert "does not run in train mode: RuntimeError: boom (evalnet.py, line 10)" in first.error.what


def test_stale_data_are_not_believed(here: Path) -> None:
    without_export(here)
    made = lay_out(here.parent / "made", "baseline")
    shutil.copytree(made / "artifacts" / "data", here / "artifacts" / "data")
    change(here, "  source: digits\n", "  source: npz\n  path: nowhere.npz\n")
    with pytest.raises(DataError, match="no such file") as caught:
        tried(here)
    assert caught.value.where.startswith(f"{here / 'params.yaml'}, data")


def test_a_device_that_is_not_there_is_told_before_any_step(here: Path) -> None:
    change(here, "device: cpu", "device: cuda:99")
    with pytest.raises(RecipeError) as caught:
        tried(here)
    assert caught.value.where == f"{here / 'params.yaml'}: device"


def test_the_number_of_threads_comes_back(here: Path) -> None:
    without_export(here)
    before = torch.get_num_threads()
    change(here, "threads: 1", "threads: 2")
    seen = [torch.get_num_threads() for _ in try_recipe(recipe_of(here), Workspace(here))]
    assert set(seen) == {2}
    assert torch.get_num_threads() == before
