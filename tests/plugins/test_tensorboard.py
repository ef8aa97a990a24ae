"""TensorBoard: what its own reader finds in the files that the watcher wrote."""

from __future__ import annotations

import json
import subprocess
import sys

import compress_tensorboard
import pytest
import torch
from compress_tensorboard import numbers_in, scalar_logged, stage_failed, stage_finished, stage_started
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

from compress_core.catalog import catalog
from compress_core.watching import Stage

FILE = "events.out.tfevents.compress"


@pytest.fixture
def stage(tmp_path):
    return Stage("pruned", tmp_path / "runs" / "pruned", {"prune.amount": 0.5, "tune.epochs": 20, "tune.warmup": None})


def read(stage):
    found = EventAccumulator(str(stage.folder), size_guidance={"histograms": 0})
    return found.Reload()


def test_curves_can_be_read_while_the_step_runs_and_afterwards(stage):
    stage_started(stage)
    for step in range(1, 4):
        scalar_logged(stage, "train/loss", 1 / step, step)
        points = read(stage).Scalars("train/loss")
        assert [point.step for point in points] == list(range(1, step + 1))
        assert points[-1].value == pytest.approx(1 / step)
    stage_finished(stage, None, {})
    assert len(read(stage).Scalars("train/loss")) == 3


def test_the_weights_of_the_finished_network_are_there_as_histograms(stage):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(12.0).reshape(3, 4))
        model[0].weight[0, 0] = float("nan")
    model.register_buffer("codes", torch.ones(2, 2, dtype=torch.int8))
    stage_started(stage)
    stage_finished(stage, model, {})
    found = read(stage)
    assert sorted(found.Tags()["histograms"]) == ["weights/0.weight", "weights/codes"]
    (weights,) = found.Histograms("weights/0.weight")
    assert (weights.histogram_value.num, weights.histogram_value.min, weights.histogram_value.max) == (11, 1, 11)


def test_parameters_and_final_metrics_stand_in_the_table_of_parameters(stage):
    stage_started(stage)
    quality = {"value": 0.9, "name": "accuracy", "ok": True, "also": {"top_3": 0.99}}
    stage_finished(stage, None, {"quality": quality, "bytes": 1000})
    found = read(stage)
    assert found.Scalars("final/quality/also/top_3")[0].value == pytest.approx(0.99)
    assert found.Scalars("final/quality/value")[0].value == pytest.approx(0.9)
    assert found.Scalars("final/bytes")[0].value == 1000
    start = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert {name: value.number_value for name, value in values.items()} == {"prune.amount": 0.5, "tune.epochs": 20}
    experiment = found.summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert sorted(metric.name.tag for metric in metrics) == [
        "final/bytes",
        "final/quality/also/top_3",
        "final/quality/value",
    ]


def test_lists_and_truth_values_among_the_parameters_are_written_as_text(tmp_path):
    stage = Stage("clipped", tmp_path, {"clip.skip": ["head", "stem"], "clip.on": True})
    stage_started(stage)
    stage_finished(stage, None, {})
    content = read(stage).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["clip.skip"].string_value == "['head', 'stem']"
    assert values["clip.on"].string_value == "true"


def test_a_failed_step_keeps_its_curves_and_says_why(stage):
    stage_started(stage)
    scalar_logged(stage, "train/loss", 2.0, 1)
    stage_failed(stage, ValueError("the loss is nan"))
    found = read(stage)
    assert found.Scalars("train/loss")[0].value == 2
    (text,) = found.Tensors("error/text_summary")
    assert text.tensor_proto.string_val[0] == b"ValueError: the loss is nan"


@pytest.mark.parametrize("end", ["finished", "failed", "broken"])
def test_the_file_is_closed_however_the_step_ends(stage, end):
    stage_started(stage)
    file = compress_tensorboard._open[stage]._file
    match end:
        case "finished":
            stage_finished(stage, None, {})
        case "failed":
            stage_failed(stage, KeyboardInterrupt())
        case "broken":
            with pytest.raises(AttributeError):
                stage_finished(stage, "no network", {})
    assert file.closed
    assert stage not in compress_tensorboard._open
    scalar_logged(stage, "late", 1.0, 1)


def test_a_step_that_runs_again_replaces_its_file_which_has_a_fixed_name(stage):
    for value in (1.0, 2.0):
        stage_started(stage)
        scalar_logged(stage, "train/loss", value, 1)
        stage_finished(stage, None, {})
    assert [path.name for path in stage.folder.iterdir()] == [FILE]
    assert [point.value for point in read(stage).Scalars("train/loss")] == [2.0]


def test_two_steps_in_one_process_do_not_mix(tmp_path):
    one, other = Stage("one", tmp_path / "one"), Stage("other", tmp_path / "other")
    stage_started(one)
    stage_started(other)
    scalar_logged(one, "loss", 1.0, 1)
    scalar_logged(other, "loss", 2.0, 1)
    stage_finished(other, None, {})
    scalar_logged(one, "loss", 3.0, 2)
    stage_failed(one, ValueError())
    assert [point.value for point in read(one).Scalars("loss")] == [1.0, 3.0]
    assert [point.value for point in read(other).Scalars("loss")] == [2.0]


def test_the_catalog_calls_the_watcher(stage):
    watchers = catalog().watchers
    watchers.tell("stage_started", stage=stage)
    watchers.tell("scalar_logged", stage=stage, name="loss", value=1.5, step=7)
    watchers.tell("stage_finished", stage=stage, model=nn.Linear(2, 2), metrics={"bytes": 3})
    found = read(stage)
    assert [(point.step, point.value) for point in found.Scalars("loss")] == [(7, 1.5)]
    assert found.Tags()["histograms"] == ["weights/weight"]


def test_numbers_are_found_in_nested_metrics_and_nothing_else_is():
    metrics = json.loads('{"quality": {"value": 0.5, "name": "accuracy"}, "ok": true, "bytes": 7, "notes": ["a"]}')
    assert dict(numbers_in(metrics)) == {"quality/value": 0.5, "bytes": 7.0}


def test_the_package_imports_neither_torch_nor_tensorboard():
    code = "import sys, compress_tensorboard; print(*[m for m in ('torch', 'tensorboard') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
