"""Compression from Python: a network, data and techniques in; a network, its measurements and its history out."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_clip import Clip
from compress_data import Digits
from compress_distill import Distill
from compress_export import Onnx
from compress_prune import Prune
from compress_quantize import Quantize
from compress_tasks.classification import Classification
from compress_tune import Tune
from torch import nn

from compress_core import Together, compress
from compress_core.artifact import load
from compress_core.data import Columns, Splits, batches
from compress_core.door import Result
from compress_core.errors import ArtifactError, CompressError, DataError, RecipeError
from compress_core.files import read_manifest
from compress_core.measure import quality
from tests.support import Classification as DigitsTask
from tests.support import digits, make

TRAIN = Tune(epochs=2, learning_rate=1e-2)


def small_splits() -> Splits:
    part = torch.arange(200)
    return Splits(*(Columns(split.take(part)) for split in (digits().train, digits().validation, digits().test)))


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return compress(make("mlp"), digits(), [Tune(epochs=4, learning_rate=1e-2)]).model


@pytest.fixture(scope="module")
def small(dense: nn.Module) -> Result:
    together = Together([Prune(amount=0.5, granularity="channel"), TRAIN])
    return compress(dense, digits(), [together, Clip(share=0.1), Quantize()])


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(digits().test.columns["image"])


def test_the_history_has_the_network_that_came_in_and_every_step(dense: nn.Module, small: Result) -> None:
    assert [entry.name for entry in small.history] == ["input", "prune + tune", "clip", "quantize"]
    before, pruned, clipped, quantized = small.history
    assert before.counts.parameters == sum(parameter.numel() for parameter in dense.parameters())
    assert (before.counts.macs, pruned.counts.macs) == (64 * 32 + 32 * 32 + 32 * 10, 64 * 16 + 16 * 16 + 16 * 10)
    went = sum(size // 10 for size in (64 * 16, 16 * 16, 16 * 10))
    assert clipped.counts.nonzero == clipped.counts.parameters - went
    assert pruned.bytes > 2 * quantized.bytes
    assert [len(entry.notes) > 0 for entry in small.history] == [False, True, True, True]
    assert clipped.notes == (f"clip: {went} of {clipped.counts.macs} weights went; {went} are zero now",)
    assert (small.quality, small.counts, small.bytes) == (quantized.quality, quantized.counts, quantized.bytes)


def test_the_figures_are_those_of_the_network_on_the_test_split(small: Result) -> None:
    assert small.quality == quality(small.model, batches(digits().test, 100), DigitsTask())
    assert small.quality.examples == len(digits().test)
    assert small.quality.value > 0.75


def test_the_network_that_comes_in_stays_as_it_is(dense: nn.Module) -> None:
    model = deepcopy(dense).train()
    before = deepcopy(model.state_dict())
    compress(model, small_splits(), [Together([Prune(amount=0.5, granularity="channel"), Quantize(), TRAIN])])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert [type(module) for module in model.modules()] == [type(module) for module in make("mlp").modules()]


def test_without_techniques_the_network_comes_back_as_a_copy(dense: nn.Module) -> None:
    found = compress(dense, small_splits(), [])
    assert found.model is not dense
    assert torch.equal(outputs(found.model), outputs(dense))
    assert len(found.history) == 1


def test_the_same_seed_gives_the_same_network_and_another_does_not() -> None:
    models = [compress(make("mlp"), small_splits(), [TRAIN], seed=seed).model for seed in (1, 1, 2)]
    assert torch.equal(outputs(models[0]), outputs(models[1]))
    assert not torch.equal(outputs(models[0]), outputs(models[2]))


def test_data_may_be_splits_a_source_or_columns_of_tensors_or_arrays(dense: nn.Module) -> None:
    given = small_splits()
    columns = {
        name: {
            "image": getattr(given, name).columns["image"].numpy(),
            "label": getattr(given, name).columns["label"].tolist(),
        }
        for name in ("train", "validation", "test")
    }
    assert compress(dense, columns, []).quality == compress(dense, given, []).quality
    found = compress(dense, Digits(), [], seed=3)
    expected = quality(dense, batches(Digits().splits(3).test, 256), Classification())
    assert found.quality == expected


def test_the_network_that_came_in_teaches_unless_another_is_given(dense: nn.Module) -> None:
    learned: dict[str, torch.Tensor] = {}
    for name, teacher in (("own", None), ("same", dense), ("other", make("mlp", seed=5))):
        found = compress(dense, small_splits(), [Together([Distill(weight=1.0), TRAIN])], teacher=teacher)
        learned[name] = outputs(found.model)
    assert torch.equal(learned["own"], learned["same"])
    assert not torch.equal(learned["own"], learned["other"])


def test_a_task_of_ones_own_judges(dense: nn.Module) -> None:
    given = small_splits()
    renamed = {
        name: {"x": getattr(given, name).columns["image"], "y": getattr(given, name).columns["label"]}
        for name in ("train", "validation", "test")
    }
    found = compress(dense, renamed, [], task=Classification(input="x", label="y"))
    assert found.quality == compress(dense, given, []).quality


def test_progress_and_notes_are_printed_where_one_wants(dense: nn.Module) -> None:
    printed: list[str] = []
    compress(dense, small_splits(), [TRAIN, Clip(share=0.5)], printer=printed.append)
    assert sum(line.startswith("epoch ") for line in printed) == 2
    assert printed[-1].startswith("clip: ")


def test_a_result_is_saved_as_an_artifact_that_gives_the_same_outputs(small: Result, tmp_path: Path) -> None:
    small.save(tmp_path / "small", factory="tests.support:MLP")
    assert torch.equal(outputs(load(tmp_path / "small", factory="tests.support:MLP")), outputs(small.model))
    manifest = read_manifest(tmp_path / "small")
    assert manifest["provenance"] == {"history": ["prune + tune", "clip", "quantize"]}


def test_a_factory_that_builds_another_network_is_refused_and_nothing_is_written(small: Result, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        small.save(tmp_path / "small", factory="tests.support:Recurrent")
    assert not list(tmp_path.iterdir())


def test_a_result_is_exported_and_measured_in_the_runtime(small: Result, tmp_path: Path) -> None:
    found = small.export(Onnx(), tmp_path / "onnx")
    assert found.value == pytest.approx(small.quality.value, abs=1 / 450)
    assert read_manifest(tmp_path / "onnx", kind="export")["provenance"] == {
        "history": ["prune + tune", "clip", "quantize"]
    }


def test_an_error_names_the_step_and_its_techniques(dense: nn.Module) -> None:
    with pytest.raises(CompressError) as caught:
        compress(dense, small_splits(), [Clip(share=0.1), Together([Clip(share=0.2, skip=["nowhere"]), TRAIN])])
    assert caught.value.where.startswith("step 2 (clip + tune)")
    assert "'nowhere'" in caught.value.what


@pytest.mark.parametrize("after", [Clip(share=0.1), TRAIN, Quantize(), Prune(amount=0.5)])
def test_nothing_changes_a_network_whose_numbers_were_changed(dense: nn.Module, after: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        compress(dense, small_splits(), [Quantize(), after])
    assert caught.value.where == f"step 2 ({after.name})"
    assert "'step 1 (quantize)' has already changed" in caught.value.what
    assert caught.value.mend == "move it before 'step 1 (quantize)', or into the same step"


MISTAKES = {
    # name: (techniques, where, what, mend)
    "a class": ([Quantize], "step 1", "is no technique", "write Quantize() with its parameters"),
    "an exporter": ([Clip(share=0.1), Onnx()], "step 2", "is no technique", "call `.export(exporter, folder)`"),
    "a name": (["quantize"], "step 1", "'quantize' is no technique", "[Prune(...), Quantize()]"),
    "no list": (Quantize(), "techniques", "come in a list", "[Prune(...), Quantize()]"),
    "nothing together": ([Together([])], "step 1 ()", "no technique", "Together([...])"),
    "one twice": ([Together([Clip(share=0.1), Clip(share=0.2)])], "step 1", "'clip' is used twice", "two steps"),
    "no epochs": ([Distill()], "step 1 (distill)", "does nothing without training", "tune"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_list_that_cannot_work_is_refused_before_anything_runs(dense: nn.Module, mistake: str) -> None:
    techniques, where, what, mend = MISTAKES[mistake]
    with pytest.raises(RecipeError) as caught:
        compress(dense, small_splits(), techniques, printer=lambda text: pytest.fail(f"it ran: {text}"))
    assert caught.value.where.startswith(where)
    assert what in caught.value.what
    assert mend in caught.value.mend


def test_data_that_do_not_fit_are_refused_before_anything_runs(dense: nn.Module) -> None:
    given = small_splits()
    with pytest.raises(DataError, match="there is no split 'test'"):
        compress(dense, {"train": given.train.columns, "validation": given.validation.columns}, [])
    words = {name: {"image": ["a", "b"], "label": [0, 1]} for name in ("train", "validation", "test")}
    with pytest.raises(DataError, match="a column is no tensor"):
        compress(dense, words, [])
    flat = {name: {"image": torch.rand(4, 7), "label": torch.arange(4)} for name in ("train", "validation", "test")}
    with pytest.raises(DataError, match="the network does not take the data"):
        compress(dense, flat, [])
    far = {
        name: {"image": torch.rand(4, 1, 8, 8), "label": torch.arange(4) + 50}
        for name in ("train", "validation", "test")
    }
    with pytest.raises(DataError, match="the label 50 in row 0"):
        compress(dense, far, [])
    with pytest.raises(DataError, match="no column 'species'"):
        compress(dense, given, [], task=Classification(input="image", label="species"))


def test_a_device_or_precision_that_is_not_there_is_refused(dense: nn.Module) -> None:
    for device, message in {"quantum": "no device", "cpu:0": "no device", "cuda:99": "cannot be used"}.items():
        with pytest.raises(RecipeError, match=f"'{device}'.* {message}") as caught:
            compress(dense, small_splits(), [TRAIN], device=device)
        assert caught.value.where == "device"
    with pytest.raises(RecipeError, match="do not train in float16") as caught:
        compress(dense, small_splits(), [TRAIN], precision="float16")
    assert caught.value.where == "precision"
    with pytest.raises(RecipeError, match="unknown precision 'float23'") as caught:
        compress(dense, small_splits(), [TRAIN], precision="float23")  # type: ignore[arg-type]
    assert caught.value.mend == "did you mean 'float32'?"
