"""Export to OpenVINO: the same outputs in float32, integer kernels, the same bytes, and errors that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys

import openvino
import pytest
import torch
from compress_export import OpenVino
from compress_export.openvino_ir import compile_folder, executed_layers
from compress_quantize import Quantize

from compress_core.applying import apply_techniques
from compress_core.errors import ArtifactError, ModelError, RecipeError
from compress_core.recipe import read_recipe
from tests.plugins.test_export import Integers, Rich
from tests.support import NETS, digits, make, make_run

IMAGE = digits().test.take(torch.arange(64))["image"]

RECIPE = """
seed: 0
threads: 1
device: cpu
precision: float32
reference: dense
data: {source: digits}
model: {factory: "compress_zoo:MLP"}
task: {name: classification}
pipeline:
  dense: {input: none, teacher: none, use: {tune: {epochs: 1}}}
  small: {input: dense, teacher: none, use: {export: {format: openvino}}}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each network of the tests, exported once."""
    found = {}
    for name in NETS:
        model, folder = make(name), tmp_path_factory.mktemp(name)
        OpenVino().export(model, folder, ((IMAGE[:2],), {}))
        found[name] = model.eval(), folder
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_files_compute_what_the_network_computes_at_any_batch(exported, name, rows):
    model, folder = exported[name]
    with torch.no_grad():
        wanted = model(IMAGE[:rows])
    torch.testing.assert_close(OpenVino().load(folder, threads=1)(IMAGE[:rows]), wanted, rtol=1e-4, atol=1e-5)


def test_a_result_is_not_changed_by_the_next_call(exported):
    call = OpenVino().load(exported["conv"][1], threads=1)
    first = call(IMAGE[:3])
    kept = first.clone()
    call(IMAGE[3:6])
    assert torch.equal(first, kept)


def test_real_numbers_are_float32_on_as_many_threads_as_were_asked_for(exported):
    compiled = compile_folder(exported["conv"][1], threads=2)
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    layers = executed_layers(exported["conv"][1])
    assert layers["Convolution", "f32"] == 6
    assert not any(kind != "f32" for layer, kind in layers if layer == "Convolution")


def test_two_files_are_written_and_name_nothing_of_this_machine(exported):
    model, folder = exported["conv"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert (folder / "model.bin").stat().st_size < 1.1 * weights + 1_000
    graph = (folder / "model.xml").read_text()
    assert os.getcwd() not in graph
    assert str(folder) not in graph
    assert "site-packages" not in graph


def test_another_process_writes_the_same_bytes(exported, tmp_path):
    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom compress_export import OpenVino\n"
        "from tests.support import digits, make\n"
        "image = digits().test.take(torch.arange(2))['image']\n"
        "OpenVino().export(make('conv'), Path(sys.argv[1]), ((image,), {}))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == found.stderr == ""
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / name).read_bytes() == (exported["conv"][1] / name).read_bytes()


def test_integers_run_in_integer_kernels(tmp_path):
    model = Integers()
    OpenVino().export(model, tmp_path, ((torch.rand(2, 16, 8, 8),), {}))
    layers = executed_layers(tmp_path)
    assert layers["Convolution", "u8"] + layers["Convolution", "i8"] == 2
    assert layers["Convolution", "f32"] == 0


def test_every_convolution_of_a_quantized_residual_network_is_an_integer_one(tmp_path):
    small = apply_techniques(make("conv"), [Quantize()], make_run())
    about = OpenVino().export(small, tmp_path, ((IMAGE[:2],), {}))
    layers = executed_layers(tmp_path)
    kinds = {kind for layer, kind in layers if layer in {"Convolution", "FullyConnected"}}
    assert kinds <= {"u8", "i8"}
    assert layers["Convolution", "u8"] == 6
    assert about["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    off = (OpenVino().load(tmp_path, 1)(IMAGE) - small(IMAGE)).abs().max()
    assert off < 0.1 * small(IMAGE).abs().max()


def test_several_inputs_and_a_dataclass_pass_through(tmp_path):
    model = Rich()
    generator = torch.Generator().manual_seed(0)
    one, a, b = (torch.rand(4, size, generator=generator) for size in (4, 3, 5))
    OpenVino().export(model, tmp_path, ((one,), {"other": {"b": b, "a": a}}))
    found = OpenVino().load(tmp_path, 1)(one, other={"a": a, "b": b})
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(one, {"a": a, "b": b}).logits)
    with pytest.raises(ModelError, match="exported for the arguments"):
        OpenVino().load(tmp_path, 1)(one)


@pytest.mark.parametrize("damage", ["no graph", "no weights", "cut", "noise", "foreign"])
def test_a_damaged_file_is_named(exported, tmp_path, damage):
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes((exported["mlp"][1] / name).read_bytes())
    graph = tmp_path / "model.xml"
    match damage:
        case "no graph":
            graph.unlink()
        case "no weights":
            (tmp_path / "model.bin").unlink()
        case "cut":
            graph.write_text(graph.read_text()[:-400])
        case "noise":
            graph.write_text("no model at all")
        case "foreign":
            text = graph.read_text()
            graph.write_text(text[: text.index("<compress")] + "</rt_info></net>")
    with pytest.raises(ArtifactError) as error:
        OpenVino().load(tmp_path, 1)
    assert error.value.where.endswith("model.bin" if damage == "no weights" else "model.xml")
    assert "\n" not in error.value.what


def test_without_openvino_the_extra_is_named_before_anything_runs(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("compress_export.find_spec", lambda name: None)
    for action in (
        lambda: OpenVino().export(make("mlp"), tmp_path, ((IMAGE[:2],), {})),
        lambda: OpenVino().load(exported["mlp"][1], 1),
    ):
        with pytest.raises(ModelError) as error:
            action()
        assert error.value.mend == "pip install 'compress-core[openvino]'"
    recipe = tmp_path / "params.yaml"
    recipe.write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"compress-core\[openvino\]"):
        read_recipe(recipe)


def test_an_input_that_does_not_fit_is_refused_with_both_shapes(exported):
    call = OpenVino().load(exported["conv"][1], threads=1)
    with pytest.raises(ModelError, match=r"shape=\[\?,1,8,8\].*shape=\(4\.1\.7\.8\)"):
        call(IMAGE[:4, :, :7])
