"""Bad input ends every command of ours with status 2 and one message: the file, the step and field, and the mend.

No traceback, and what was finished before stays as it was, byte for byte.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from compress_core.errors import EXIT_STATUS
from tests.doors import Ended, call, contents, lay_out
from tests.workspaces import SMALL, change, environment

STEPS = ("baseline", "clipped", "student")
CHECKED = [
    ("compress", "check"),
    ("compress", "try"),
    ("compress", "clean"),
    ("lock",),
    ("data",),
    ("stage", "clipped"),
]
"""Commands that read the recipe."""


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


def results(folder: Path) -> dict[str, str]:
    return {**contents(folder / "artifacts"), **contents(folder / "metrics")}


def refused(folder: Path, *command: str) -> str:
    """The message with which a command refuses; checks that there is one, and that nothing else happened."""
    before = results(folder)
    ended = call(*command)
    assert results(folder) == before, f"{command} changed the results"
    return message_of(ended, command)


def message_of(ended: Ended, command: tuple[str, ...] = ()) -> str:
    assert ended.status == EXIT_STATUS, f"{command} ended with {ended.status}: {ended.out}{ended.err}"
    assert [line.startswith("error: ") for line in ended.err.splitlines()].count(True) == 1, ended.err
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) <= 2, ended.err
    assert "to mend it: " in ended.err, f"no mend: {ended.err}"
    return ended.err


RECIPES = {
    # name: (text of the recipe, what replaces it, the place, words of the message)
    "unknown technique": ("clip:", "clipp:", "pipeline.clipped.use.clipp", "did you mean 'clip'?"),
    "unknown parameter": ("share: 0.2", "shore: 0.2", "pipeline.clipped.use.clip.shore", "mean 'share'?"),
    "out of range": ("share: 0.2", "share: 1.5", "pipeline.clipped.use.clip.share", "compress plugins clip"),
    "wrong type": ("epochs: 2", "epochs: two", "pipeline.baseline.use.tune.epochs", "should be a valid integer"),
    "contradiction": ("share: 0.2", "share: 0.2\n        threshold: 1", "clipped.use.clip", "compress plugins clip"),
    "unknown input": ("input: clipped", "input: cliped", "pipeline.onnx.input", "did you mean 'clipped'?"),
    "cycle": ("input: none\n    teacher: none", "input: clipped\n    teacher: none", "pipeline.", "round in a circle"),
    "export as input": ("teacher: baseline", "teacher: onnx", "pipeline.student.teacher", "name 'clipped', its own"),
    "no file name": ("  clipped:", "  a/b:", "pipeline.a/b", "use a-z, 0-9, '-' and '_'"),
    "reserved name": ("  student:", "  data:", "pipeline.data", "but not none, data, lock, report"),
    "empty pipeline": (SMALL[SMALL.index("pipeline:") :], "pipeline: {}\n", "pipeline", "add a step"),
    "no YAML": ("threads: 1", "threads: [1", "line 3: no YAML", "look at the indentation"),
    "no recipe but a list": (SMALL, "- seed\n", "params.yaml", "it has the sections seed, threads"),
    "no device at all": ("device: cpu\n", "", "params.yaml", "add `device:`"),
    "unknown data source": ("source: digits", "source: digit", "data.source", "did you mean 'digits'?"),
    "unknown task": ("name: classification", "name: classify", "task.name", "did you mean 'classification'?"),
    "unknown format": ("format: onnx", "format: onyx", "pipeline.onnx.use.export.format", "did you mean 'onnx'?"),
    "no import string": ("compress_zoo:MLP", "compress_zoo.MLP", "model.factory", "should match pattern"),
    "training without epochs": ("      tune:\n        epochs: 1\n", "", "pipeline.student.use", "tune: {epochs: 10}"),
}


@pytest.mark.parametrize("mistake", RECIPES)
def test_a_mistake_in_the_recipe_ends_every_command(here: Path, mistake: str) -> None:
    old, new, place, words = RECIPES[mistake]
    before, _, after = SMALL.partition(old)
    (here / "params.yaml").write_text(before + new + after)
    messages = {refused(here, *command) for command in CHECKED}
    assert len(messages) == 1, messages
    message = messages.pop()
    assert message.startswith("error: params.yaml")
    assert place in message
    assert words in message
    if place.startswith("pipeline."):
        line = int(message.partition(", line ")[2].partition(",")[0])
        assert place.rpartition(".")[2] in f"{before}{new}{after}".splitlines()[line - 1]


@pytest.mark.parametrize("command", [*CHECKED, ("compress", "report")])
def test_an_empty_folder_is_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = message_of(call(*command), command)
    assert "params.yaml" in message or "report.json" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("stage", "cliped"), "did you mean 'clipped'?"),
        (("stage",), "python -m compress_core.stage NAME"),
        (("compress", "plugins", "prun"), "did you mean 'prune'?"),
        (("compress", "report"), "run `dvc repro`"),
    ],
)
def test_a_command_that_asks_for_what_is_not_there_says_what_is(
    here: Path, command: tuple[str, ...], words: str
) -> None:
    assert words in refused(here, *command)


NETWORK = """
import torch
from torch import nn

def build({arguments}):
    return {result}
"""
FITTING = "nn.Sequential(nn.Flatten(), nn.Linear(64, 10))"


def use_network(folder: Path, factory: str, arguments: str = "", result: str = FITTING, params: str = "") -> None:
    (folder / "mynet.py").write_text(NETWORK.format(arguments=arguments, result=result))
    change(folder, "compress_zoo:MLP", factory)
    change(folder, "  params:\n    widths: [16]\n", f"  params: {{{params}}}\n")


NETWORKS = {
    # name: (factory, arguments, result, params, the field, words of the message)
    "no such module": ("mynett:build", "", FITTING, "", "model.factory", "no module 'mynett'"),
    "no such function": ("mynet:biuld", "", FITTING, "", "model.factory", "did you mean 'build'?"),
    "no function": ("mynet:torch.pi", "", FITTING, "", "model.factory", "'mynet:torch.pi' is no function or class"),
    "no network": ("mynet:build", "", "42", "", "model.factory", "'mynet:build' returns int"),
    "fails": ("mynet:build", "", "nn.Linear(-1, 2) / 0", "", "model.params", "fails with RuntimeError"),
    "unknown argument": ("mynet:build", "width=3", FITTING, "widht: 4", "model.params", "widht"),
    "other shape": ("mynet:build", "", "nn.Linear(3, 10)", "", "model", "does not take the data"),
    "too few classes": ("mynet:build", "", "nn.Sequential(nn.Flatten(), nn.Linear(64, 5))", "", "label", "is no class"),
}


@pytest.mark.parametrize("mistake", NETWORKS)
def test_a_network_that_cannot_be_built_or_does_not_fit_is_told(here: Path, mistake: str) -> None:
    factory, arguments, result, params, field, words = NETWORKS[mistake]
    use_network(here, factory, arguments, result, params)
    for command in (("stage", "baseline"), ("compress", "try")):
        message = refused(here, *command)
        assert field in message
        assert words in message
        assert "params.yaml" in message


def test_a_module_that_is_not_there_is_told_before_anything_runs(here: Path) -> None:
    use_network(here, "mynett:build")
    for command in (("compress", "check"), ("lock",)):
        message = refused(here, *command)
        assert message.startswith("error: params.yaml, model.factory: there is no module 'mynett'")
        assert f"put it into {here}" in message


def test_a_module_that_fails_on_import_is_told_with_its_error(here: Path) -> None:
    use_network(here, "mynet:build")
    (here / "mynet.py").write_text("raise OSError('no library')\n")
    message = refused(here, "stage", "baseline")
    assert "pipeline.baseline: model.factory: 'mynet:build' does not resolve" in message
    assert "OSError('no library')" in message


def test_data_without_the_column_of_the_task_are_told_by_stage_and_trial(here: Path) -> None:
    change(here, "name: classification\n", "name: classification\n  label: species\n")
    for command in (("stage", "baseline"), ("compress", "try")):
        message = refused(here, *command)
        assert "params.yaml, pipeline.baseline: " in message
        assert "'species'" in message


def use_arrays(folder: Path, **arrays: np.ndarray) -> None:
    np.savez(folder / "mine.npz", **arrays)
    change(folder, "  source: digits\n", "  source: npz\n  path: mine.npz\n")


def test_data_that_are_not_what_the_recipe_says_are_told(here: Path) -> None:
    use_arrays(here, image=np.zeros((40, 8, 8), np.float32), label=np.arange(39) % 10)
    for command in (("data",), ("compress", "try")):
        message = refused(here, *command)
        assert message.startswith("error: params.yaml, data: mine.npz")


def test_a_data_file_that_is_not_there_is_told(here: Path) -> None:
    change(here, "  source: digits\n", "  source: npz\n  path: mine.npz\n")
    for command in (("data",), ("compress", "try"), ("compress", "check"), ("lock",)):
        message = refused(here, *command)
        assert message.startswith("error: params.yaml, data")
        assert "mine.npz" in message


def test_labels_outside_the_classes_are_told_with_their_row(here: Path) -> None:
    labels = np.arange(60) % 10
    labels[:30] = 77
    use_arrays(here, image=np.random.default_rng(0).normal(size=(60, 8, 8)).astype(np.float32), label=labels)
    message = refused(here, "compress", "try")
    assert "params.yaml, pipeline.baseline: column 'label': the label 77 in row " in message
    assert "0 to 9" in message


def test_a_training_that_diverges_is_told_with_its_epoch(here: Path) -> None:
    change(here, "        learning_rate: 0.01\n", "        learning_rate: 1.0e+30\n        optimizer: sgd\n")
    message = refused(here, "stage", "baseline")
    assert message.startswith("error: params.yaml, pipeline.baseline: ")
    assert "in epoch 1, update " in message
    assert "lower the learning rate" in message


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-7])


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def rewrite(folder: Path, **entries: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **entries}))


ALTERED = {
    "truncated": truncate,
    "a flipped bit": flip,
    "no tensors": lambda folder: (folder / "model.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "a manifest of words": lambda folder: (folder / "manifest.json").write_text("what?"),
    "a manifest that is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "a manifest that is bytes": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "a manifest without entries": lambda folder: (folder / "manifest.json").write_text(
        '{"format": 1, "kind": "model", "files": {}}'
    ),
    "nonsense for entries": lambda folder: rewrite(folder, edits=3, ties=[], masked=None),
    "an edit that nobody knows": lambda folder: rewrite(folder, edits=[{"op": "explode", "path": "head"}]),
    "another format": lambda folder: rewrite(folder, format=99),
    "another kind": lambda folder: rewrite(folder, kind="export"),
    "a strange factory": lambda folder: rewrite(folder, factory="os:getcwd"),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", ALTERED)
def test_a_damaged_input_is_told_and_nothing_is_made_of_it(here: Path, damage: str) -> None:
    ALTERED[damage](here / "artifacts" / "baseline")
    message = refused(here, "stage", "clipped")
    assert message.startswith("error: params.yaml, pipeline.clipped: artifacts/baseline: ")


def test_a_damaged_teacher_is_told(here: Path) -> None:
    flip(here / "artifacts" / "baseline")
    message = refused(here, "stage", "student")
    assert "pipeline.student: artifacts/baseline: model.safetensors was altered: its checksum differs" in message
    assert "dvc pull" in message


@pytest.mark.parametrize("damage", ["altered", "gone", "no manifest", "without entries"])
def test_damaged_data_are_told(here: Path, damage: str) -> None:
    place = here / "artifacts" / "data"
    match damage:
        case "altered":
            (place / "train.safetensors").write_bytes(b"1234567890")
        case "gone":
            shutil.rmtree(place)
        case "no manifest":
            (place / "manifest.json").unlink()
        case "without entries":
            (place / "manifest.json").write_text('{"format": 1, "kind": "data", "files": {}}')
    message = refused(here, "stage", "baseline")
    assert message.startswith("error: params.yaml, pipeline.baseline: artifacts/data: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_told(here: Path) -> None:
    change(here, "device: cpu", "device: cuda")
    place = "params.yaml, pipeline.clipped: device: 'cuda' cannot be used"
    assert place in refused(here, "stage", "clipped")
    assert "params.yaml: device: 'cuda' cannot be used" in refused(here, "compress", "try")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file that is larger, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", [("stage", "clipped"), ("data",)])
def test_a_full_disk_is_told_and_leaves_the_old_artifact(here: Path, command: tuple[str, ...]) -> None:
    with files_of_at_most(512):
        message = refused(here, *command)
    assert f"artifacts/{command[-1]}/" in message
    assert ".part" not in message
    assert "cannot be written: " in message
    assert "free space" in message
    assert not list((here / "artifacts").glob(".*.part"))


def test_a_full_disk_is_told_by_the_lock(here: Path) -> None:
    (here / "step.lock.yaml").write_text("old\n")
    with files_of_at_most(16):
        assert "step.lock.yaml: cannot be written" in refused(here, "lock")
    assert (here / "step.lock.yaml").read_text() == "old\n"


def test_a_place_that_cannot_be_a_folder_is_told(here: Path) -> None:
    shutil.rmtree(here / "runs")
    (here / "runs").write_text("a file")
    assert "runs/clipped: cannot be written" in refused(here, "stage", "clipped")


PROCESSES = {
    "check": ["compress", "check"],
    "try": ["compress", "try"],
    "data": [sys.executable, "-m", "compress_core.data"],
    "lock": [sys.executable, "-m", "compress_core.lock"],
    "stage": [sys.executable, "-m", "compress_core.stage", "clipped"],
}


def test_the_commands_themselves_end_with_status_2_and_one_message(here: Path) -> None:
    change(here, "share: 0.2", "shore: 0.2")
    before = results(here)
    started = {
        name: subprocess.Popen(
            command, cwd=here, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for name, command in PROCESSES.items()
    }
    for name, process in started.items():
        out, err = process.communicate()
        assert "pipeline.clipped.use.clip.shore" in message_of(Ended(process.returncode, out, err), (name,))
        assert out == ""
    assert results(here) == before


def test_a_plugin_that_fails_on_import_is_told_where_it_is_used(here: Path, tmp_path: Path) -> None:
    info = tmp_path / "plugins" / "melt-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: melt\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[compress]\nmelt = melt\n")
    (tmp_path / "plugins" / "melt.py").write_text("raise OSError('no such oven')\n")

    def check(*command: str) -> Ended:
        variables = environment(PYTHONPATH=str(tmp_path / "plugins"))
        done = subprocess.run(command, cwd=here, env=variables, text=True, capture_output=True, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    unused = check("compress", "check")
    assert unused.status == 0, unused.err
    assert "Traceback" not in unused.err
    change(here, "      clip:\n        share: 0.2\n", "      melt:\n")
    message = message_of(check("compress", "check"))
    assert "pipeline.clipped.use.melt: unknown technique 'melt'" in message
    assert "plugin 'melt'" in message
    assert "OSError: no such oven" in message
    assert "no such oven" in check("compress", "plugins").out
