"""The fastest format: chosen by measuring, within the bound on quality, and told with every figure."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from compress_export import Fastest, Onnx, OpenVino
from compress_export.choosing import fastest, format_of
from pydantic import ValidationError
from torch import Tensor

from compress_core.errors import ArtifactError, ModelError
from compress_core.files import read_manifest
from compress_core.parts import Exporter
from compress_core.report.comparing import compare
from compress_core.stage import export_model
from compress_core.testing import Epochs
from compress_core.workspace import Workspace
from tests.doors import lay_out, recipe_of
from tests.support import digits, make, make_run


class Slow(Onnx):
    """A format whose runtime sleeps."""

    name = "slow"

    def load(self, folder, threads):
        call = super().load(folder, threads)

        def slowly(image: Tensor) -> Tensor:
            time.sleep(0.02)
            return call(image)

        return slowly


class Wrong(Onnx):
    """A quick format that gives every third digit another name."""

    name = "wrong"

    def load(self, folder, threads):
        def call(image: Tensor) -> Tensor:
            return torch.zeros(len(image), 10)

        return call

    def export(self, model, folder, example):
        return None


class Broken(Onnx):
    """A format that cannot hold the network."""

    name = "broken"

    def export(self, model, folder, example):
        raise ModelError("it has an operator too many", mend="take another")


class Absent(Onnx):
    """A format whose runtime is not installed."""

    name = "absent"

    @classmethod
    def missing(cls):
        return "a-runtime"


@pytest.fixture(scope="module")
def trained():
    return make_run().train(make("mlp"), [Epochs(epochs=3)]).eval()


def choose(model, *candidates: Exporter, max_loss=0.5):
    """The chosen format, what was said, and what was recorded."""
    said, recorded = [], {}
    run = replace(make_run(), teller=said.append, recorder=recorded.__setitem__)
    found = fastest(model, {entry.name: entry for entry in candidates}, Fastest(max_loss=max_loss, batch=3), run)
    return found.name, said, recorded["fastest"]


def test_the_fastest_is_chosen_and_every_candidate_is_told_with_its_figures(trained):
    name, said, recorded = choose(trained, Slow(), Onnx())
    assert name == recorded["chosen"] == "onnx"
    assert recorded["not_taken"] == {"slow": "it is slower"}
    assert recorded["candidates"]["slow"]["milliseconds"] > 20 > recorded["candidates"]["onnx"]["milliseconds"]
    assert recorded["candidates"]["onnx"]["points_lost"] == 0
    assert (recorded["batch"], recorded["threads"]) == (3, torch.get_num_threads())
    assert len(said) == 2
    assert said[0].startswith("fastest: onnx takes ")
    assert said[0].endswith(": chosen")
    assert "times as fast as eager torch" in said[1]
    assert said[1].endswith("not taken, it is slower")


def test_a_faster_format_that_loses_quality_is_not_taken_unless_it_may(trained):
    name, said, recorded = choose(trained, Wrong(), Slow())
    assert name == "slow"
    assert "loses" in recorded["not_taken"]["wrong"]
    assert recorded["candidates"]["wrong"]["points_lost"] > 50
    assert any("0.5 are allowed" in line for line in said)
    assert choose(trained, Wrong(), Slow(), max_loss=100)[0] == "wrong"


def test_what_cannot_be_exported_or_is_not_installed_is_left_out_with_its_reason(trained):
    name, _, recorded = choose(trained, Broken(), Absent(), Onnx())
    assert name == "onnx"
    assert recorded["not_taken"] == {"broken": "it has an operator too many", "absent": "it is not installed"}
    with pytest.raises(ModelError, match="broken: it has an operator too many; wrong: it loses"):
        choose(trained, Broken(), Wrong())


def test_the_files_are_those_of_the_chosen_format_and_the_manifest_says_why(trained, tmp_path):
    said = []
    run = replace(make_run(), teller=said.append)
    call = export_model(trained, Fastest(), tmp_path / "out", run, {})
    manifest = read_manifest(tmp_path / "out", kind="export")
    choice = manifest["measured"]["fastest"]
    assert manifest["exporter"] == choice["chosen"] in {"onnx", "openvino"}
    assert set(choice["candidates"]) == {"onnx", "openvino"}
    assert choice["candidates"][choice["chosen"]]["milliseconds"] == min(
        entry["milliseconds"] for entry in choice["candidates"].values()
    )
    alone = {"onnx": Onnx, "openvino": OpenVino}[choice["chosen"]]()
    alone.export(trained, tmp_path / "alone", run.example)
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    image = digits().test.take(torch.arange(9))["image"]
    again = Fastest().load(tmp_path / "out", threads=1)(image)
    torch.testing.assert_close(again, call(image))
    torch.testing.assert_close(again, trained(image), rtol=1e-4, atol=1e-5)
    assert len(said) == 2


def test_the_network_stays_as_it_is(trained):
    model = make("conv").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choose(model, Onnx(), max_loss=100)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("candidates", "says"),
    [((), "is empty"), (("onnx", "onyx"), "did you mean 'onnx'"), (("fastest",), "cannot be a candidate")],
)
def test_candidates_that_are_no_formats_are_refused(candidates, says):
    with pytest.raises(ValidationError, match=says):
        Fastest(candidates=candidates)


def test_the_candidates_plugins_make_the_step_old():
    assert [part.name for part in Fastest(candidates=("openvino", "torch-program")).parts] == [
        "openvino",
        "torch-program",
    ]


@pytest.mark.parametrize("content", ["{}", "no json", '{"exporter": "hand-written"}'])
def test_a_manifest_that_names_no_installed_format_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match="format"):
        format_of(tmp_path)


RECIPE = """
seed: 0
threads: 1
device: cpu
precision: float32
reference: dense
data: {source: digits}
model: {factory: "compress_zoo:MLP", params: {widths: [2]}}
task: {name: classification}
pipeline:
  dense: {input: none, teacher: none, use: {tune: {epochs: 2, learning_rate: 0.01}}}
  int8: {input: dense, teacher: none, use: {quantize: {}}}
  file: {input: int8, teacher: none, use: {export: {format: fastest, max_loss: 20}}}
"""


def test_a_report_opens_the_choice_beside_the_dense_one_and_says_that_integers_made_it_bigger_and_slower(tmp_path):
    folder = lay_out(tmp_path / "workspace", "dense", "int8", "file", recipe=RECIPE)
    report = compare(recipe_of(folder), Workspace(folder), seconds=0.02)
    file = report.steps["file"]
    assert sum(note.startswith("fastest: ") for note in file.metrics.notes) == 2
    assert file.latency[0].speedup.value > 0
    assert any(said.startswith("no smaller than the reference") for said in file.remarks)
    slower = [
        said for said in report.steps["int8"].remarks if said.startswith("no faster than the reference, but slow")
    ]
    assert slower, "eager torch has no integer kernels"
