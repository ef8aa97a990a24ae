"""Export to torch.export: the same outputs and bytes, and no file that could run code is opened."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from compress_export import TorchProgram
from compress_quantize import Quantize
from torch._export.serde.schema import ScalarType

from compress_core.applying import apply_techniques
from compress_core.errors import ArtifactError
from tests.plugins.test_export import Rich
from tests.support import NETS, digits, make, make_run

IMAGE = digits().test.take(torch.arange(64))["image"]


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    """A small network, and its file."""
    model, folder = make("conv"), tmp_path_factory.mktemp("conv")
    TorchProgram().export(model, folder, ((IMAGE[:2],), {}))
    return model.eval(), folder / "model.pt2"


def rewritten(source, target, change):
    """A copy of an archive; `change(entry, content)` gives the new content, or None to leave the entry out."""
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target.parent


def in_graph(edit):
    def change(entry, content):
        if entry != "models/model.json":
            return content
        graph = json.loads(content)
        edit(graph)
        return json.dumps(graph).encode()

    return change


@pytest.mark.parametrize("name", NETS)
def test_the_file_computes_what_the_network_computes_at_any_batch(tmp_path, name):
    model = make(name).eval()
    about = TorchProgram().export(model, tmp_path, ((IMAGE[:2],), {}))
    call = TorchProgram().load(tmp_path, threads=1)
    for rows in (1, 3, 64):
        with torch.no_grad():
            torch.testing.assert_close(call(IMAGE[:rows]), model(IMAGE[:rows]), rtol=1e-4, atol=1e-5)
    assert about["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}]


def test_integers_stay_integers(tmp_path):
    small = apply_techniques(make("conv"), [Quantize()], make_run())
    TorchProgram().export(small, tmp_path, ((IMAGE[:2],), {}))
    assert torch.equal(TorchProgram().load(tmp_path, 1)(IMAGE), small(IMAGE))
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        names = [entry for entry in archive.namelist() if entry.endswith("model_weights_config.json")]
        config = json.loads(archive.read(names[0]))["config"]
    kinds = {name: entry["tensor_meta"]["dtype"] for name, entry in config.items()}
    assert {kinds[name] for name in kinds if name.endswith("conv1.weight")} == {ScalarType.CHAR}


def test_a_dataclass_comes_out(tmp_path):
    model = Rich()
    one, a, b = torch.rand(4, 4), torch.rand(4, 3), torch.rand(4, 5)
    TorchProgram().export(model, tmp_path, ((one,), {"other": {"b": b, "a": a}}))
    found = TorchProgram().load(tmp_path, 1)(one, {"a": a, "b": b})
    torch.testing.assert_close(found.logits, model(one, {"a": a, "b": b}).logits)
    assert found.note == "kept"


def test_the_archive_holds_json_and_raw_tensors_and_nothing_of_this_machine(conv):
    with zipfile.ZipFile(conv[1]) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert sum(map(len, contents.values())) > 0
    for name, content in contents.items():
        assert not content.startswith((b"\x80\x02", b"PK")), f"{name} holds a pickle"
        assert b'stack_trace": "' not in content.replace(b'"stack_trace": ""', b"")
        assert os.getcwd().encode() not in content
        assert b"site-packages" not in content


def test_another_process_writes_the_same_bytes(conv, tmp_path):
    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom compress_export import TorchProgram\n"
        "from tests.support import digits, make\n"
        "image = digits().test.take(torch.arange(2))['image']\n"
        "TorchProgram().export(make('conv'), Path(sys.argv[1]), ((image,), {}))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "model.pt2").read_bytes() == conv[1].read_bytes()


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_torch_itself_would_unpickle_what_is_refused_here(conv, tmp_path):
    trap = tmp_path / "sprung"
    poison = pickle.dumps(Trap(trap))
    folder = rewritten(
        conv[1], tmp_path / "bad" / "model.pt2", lambda entry, old: poison if entry.endswith("inputs/model.pt") else old
    )
    with pytest.raises(ArtifactError, match="example inputs, which are pickled"):
        TorchProgram().load(folder, 1)
    assert not trap.exists()


def poisoned_size(graph):
    text = json.dumps(graph).replace("Symbol('", "__import__('os').system('true') + Symbol('", 1)
    graph.update(json.loads(text))


def foreign_operator(graph):
    next(node for node in graph["graph_module"]["graph"]["nodes"])["target"] = "torch.ops.evil.run.default"


def foreign_type(graph):
    text = json.dumps(graph).replace("builtins.tuple", "collections.defaultdict", 1)
    graph.update(json.loads(text))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (in_graph(poisoned_size), "a size is"),
        (in_graph(foreign_type), "it builds 'collections.defaultdict'"),
        (in_graph(foreign_operator), "it calls 'torch.ops.evil.run.default'"),
        (
            in_graph(lambda graph: graph.update(guards_code=["exit()"])),
            "code",
        ),
        (lambda entry, old: old.replace(b'"use_pickle": false', b'"use_pickle": true'), "is pickled"),
        (lambda entry, old: old.replace(b'"path_name": "weight_0"', b'"path_name": "../x"'), "is pickled"),
    ],
    ids=["size", "type", "operator", "guards", "pickled weight", "path"],
)
def test_a_file_that_might_run_code_is_not_opened(conv, tmp_path, change, says):
    folder = rewritten(conv[1], tmp_path / "bad" / "model.pt2", change)
    with pytest.raises(ArtifactError, match=says):
        TorchProgram().load(folder, 1)


def test_an_entry_that_is_not_ours_is_refused(conv, tmp_path):
    folder = rewritten(conv[1], tmp_path / "bad" / "model.pt2", lambda entry, old: old)
    with zipfile.ZipFile(folder / "model.pt2", "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/data/constants/custom_obj_0", b"x")
    with pytest.raises(ArtifactError, match="custom_obj_0"):
        TorchProgram().load(folder, 1)


def test_a_compressed_archive_is_refused_before_it_is_read(conv, tmp_path):
    with zipfile.ZipFile(conv[1]) as old, zipfile.ZipFile(tmp_path / "model.pt2", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ArtifactError, match="larger than it looks"):
        TorchProgram().load(tmp_path, 1)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_a_damaged_file_is_named(conv, tmp_path, damage):
    content = conv[1].read_bytes()
    if damage == "foreign":
        other = io.BytesIO()
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("x/y", b"z")
        content = other.getvalue()
    if damage != "missing":
        (tmp_path / "model.pt2").write_bytes({"empty": b"", "cut": content[:-500]}.get(damage, content))
    with pytest.raises(ArtifactError) as error:
        TorchProgram().load(tmp_path, 1)
    assert error.value.where.endswith("model.pt2")
    assert "\n" not in error.value.what
