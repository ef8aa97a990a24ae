"""The probe of the contracts: one joint step of everything at once, on a network that takes and gives dictionaries.

Gradual channel pruning, fake quantization, distillation with a hint and a tuned optimizer share one training of
a residual network with BatchNorm. If the contracts between techniques hold, it holds, and so does its artifact.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from compress_distill import Distill
from compress_export import Onnx
from compress_prune import Prune
from compress_quantize import Quantize
from compress_tasks.classification import Classification
from compress_tune import Tune
from safetensors import safe_open
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import TENSORS, load, save
from compress_core.data import batches
from compress_core.errors import RecipeError
from compress_core.factory import build_model
from compress_core.measure import counts, quality
from compress_core.modes import torch_threads
from compress_core.order import check_together
from compress_core.parts import TrainingTechnique
from compress_core.stage import export_model
from tests.support import digits, make_run

FACTORY = "tests.support:DictNet"
TASK = Classification(input="image", passing="dictionary")
BLOCK = "net.blocks.0"


def tune(epochs: int) -> Tune:
    return Tune(epochs=epochs, learning_rate=5e-3, schedule="cosine", warmup=0.1)


def joint(epochs: int) -> list[TrainingTechnique]:
    return [
        Prune(amount=0.5, granularity="channel", schedule="gradual"),
        Quantize(bits=8),
        Distill(temperature=4, hints={BLOCK: BLOCK}),
        tune(epochs),
    ]


def state_of(model: nn.Module) -> str:
    """A hash of all that a step might change in a network: its tensors, modes, freezing and hooks."""
    found = sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    for path, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found.update(f"{path} {type(module).__name__} {module.training} {hooks} {vars(module).keys()}".encode())
    for name, parameter in model.named_parameters():
        found.update(f"{name} {parameter.requires_grad} {parameter.grad is None}".encode())
    return found.hexdigest()


def images() -> dict[str, torch.Tensor]:
    return {"image": digits().test.columns["image"]}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return apply_techniques(build_model(FACTORY, {}), [tune(7)], make_run(task=TASK))


@pytest.fixture(scope="module")
def states(dense: nn.Module) -> dict[str, str]:
    """The dense network's state before and after the joint step."""
    return {"before": state_of(dense)}


@pytest.fixture(scope="module")
def small(dense: nn.Module, states: dict[str, str]) -> nn.Module:
    result = apply_techniques(dense, joint(8), make_run(task=TASK, teacher=dense))
    states["after"] = state_of(dense)
    return result


@pytest.fixture(scope="module")
def artifact(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "joint"
    save(small, folder, factory=FACTORY)
    return folder


def test_half_of_the_channels_are_gone_and_three_quarters_of_the_work(dense: nn.Module, small: nn.Module) -> None:
    widths = {name: module.out_channels for name, module in dense.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(widths) == 6
    assert {name: 2 * small.get_submodule(name).out_channels for name in widths} == widths
    example = make_run(task=TASK).example
    before, after = counts(dense, example), counts(small, example)
    assert after.parameters < 0.3 * before.parameters
    assert after.macs < 0.3 * before.macs


def test_the_small_network_still_tells_the_digits_apart(small: nn.Module) -> None:
    assert quality(small, batches(digits().test, 256), TASK).value >= 0.93


def test_every_weight_is_an_integer_in_the_file(artifact: Path, dense: nn.Module, tmp_path: Path) -> None:
    with safe_open(artifact / TENSORS, framework="pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (a method of its own)
    kept = {name: kind for name, kind in types.items() if name.endswith(("weight", "bias"))}
    assert kept == {name: "I8" if name.endswith("weight") else "I32" for name in kept}
    assert sum(kind == "I8" for kind in kept.values()) == 7
    save(dense, tmp_path / "dense", factory=FACTORY)
    sizes = [(folder / TENSORS).stat().st_size for folder in (tmp_path / "dense", artifact)]
    assert sizes[0] > 6 * sizes[1]


def test_the_artifact_gives_the_same_outputs_bit_for_bit(small: nn.Module, artifact: Path, tmp_path: Path) -> None:
    loaded = load(artifact, factory=FACTORY)
    with torch.no_grad():
        assert torch.equal(loaded(images())["logits"], small(images())["logits"])
    save(loaded, tmp_path / "again", factory=FACTORY)
    assert (tmp_path / "again" / TENSORS).read_bytes() == (artifact / TENSORS).read_bytes()
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (artifact / "manifest.json").read_bytes()


def test_the_exported_file_gives_the_same_outputs_for_any_batch(artifact: Path, tmp_path: Path) -> None:
    loaded = load(artifact, factory=FACTORY)
    runtime = export_model(loaded, Onnx(), tmp_path / "onnx", make_run(task=TASK), {})
    for size in (1, 7, 450):
        inputs = {"image": images()["image"][:size]}
        with torch.no_grad():
            expected = loaded(inputs)["logits"]
        given = runtime(inputs)["logits"]
        assert given.shape == (size, 10)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_the_network_that_came_in_and_taught_is_untouched(small: nn.Module, states: dict[str, str]) -> None:
    assert states["after"] == states["before"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(dense: nn.Module, tmp_path: Path) -> None:
    found = []
    for place, seed in (("one", 3), ("two", 3), ("other", 4)):
        result = apply_techniques(dense, joint(2), make_run(task=TASK, teacher=dense, seed=seed))
        save(result, tmp_path / place, factory=FACTORY)
        found.append((tmp_path / place / TENSORS).read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_nothing_that_trains_may_follow() -> None:
    with pytest.raises(RecipeError, match="'quantize' cannot change a network whose numbers 'joint' has already"):
        check_together(joint(1)[1:2], teacher=True, numbers_from="joint")
    with pytest.raises(RecipeError, match="move it before 'joint', or into the same step"):
        check_together([tune(1)], teacher=True, numbers_from="joint")
