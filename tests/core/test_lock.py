"""What a step depends on: an edit of any of it is noticed, and nothing else is."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from compress_core import computing
from compress_core import lock as lock_module
from compress_core.catalog import read_catalog
from compress_core.computing import ASIDE, COMPUTES, FOR_DATA, MEASURES, core_hash, core_module
from compress_core.errors import DataError, RecipeError
from compress_core.hashes import SETTLED, Memory, hash_tree
from compress_core.lock import lock, to_yaml
from compress_core.recipe import read_recipe
from compress_core.sources import Finder, closure, imports_in
from compress_core.workspace import Workspace
from tests.core.fakes import point

PLUGIN = """\
from compress_core import hookimpl
from compress_core.parts import Technique
class Part(Technique):
    name = "{name}"
    weights: str = ""
    def apply(self, model, run):
        from {package} import mathematics
        return mathematics.do(model)
@hookimpl
def register_techniques():
    return [Part]
"""
BASE = """\
from pathlib import Path
from compress_core import hookimpl
from compress_core.parts import DataSource, Task
class Data(DataSource):
    name = "lock-data"
    read: tuple[Path, ...] = ()
    code: tuple[str, ...] = ()
    def splits(self, seed): raise NotImplementedError
    def files(self): return self.read
    def imports(self): return self.code
class Aim(Task):
    name = "lock-task"
    inputs = loss = logits = target = metrics = lambda self: None
@hookimpl
def register_data_sources():
    return [Data]
@hookimpl
def register_tasks():
    return [Aim]
"""
PARAMS = """\
reference: first
seed: 0
threads: 1
device: cpu
precision: float32
data: {{source: lock-data{data}}}
model: {{factory: "mynet.build:make", params: {params}}}
task: {{name: lock-task}}
pipeline:
  first: {{input: none, teacher: none, use: {{lock-one: {{}}}}}}
  second: {{input: first, teacher: none, use: {{lock-two: {{}}}}}}
  third: {{input: none, teacher: first, model: {{factory: "other:make"}}, use: {{lock-two: {{}}}}}}
  fourth: {{input: none, teacher: third, use: {{lock-two: {{}}}}}}
"""


class Place:
    """A workspace with a network of its own, and two plugins beside it."""

    def __init__(self, root: Path, plugins: Path) -> None:
        self.workspace = Workspace(root)
        self.plugins = plugins
        self.write("mynet/__init__.py", "")
        self.write("mynet/build.py", "from . import layers\nimport torch\ndef make(**_): ...\n")
        self.write("mynet/layers.py", "WIDTH = 1\n")
        self.write("other.py", "def make(): ...\n")
        self.write("unrelated.py", "import prefect\n")
        self.params()
        (plugins / "lock_base.py").write_text(BASE)
        for name in ("one", "two"):
            self.plugin(name)

    def write(self, name: str, text: str) -> Path:
        path = self.workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def params(self, params: str = "{}", data: str = "") -> None:
        self.write("params.yaml", PARAMS.format(params=params, data=data))

    def plugin(self, name: str, more: str = "") -> None:
        package = self.plugins / f"lock_plugin_{name}"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(PLUGIN.format(name=f"lock-{name}", package=package.name) + more)
        (package / "mathematics.py").write_text("import safetensors, sklearn.svm\ndef do(model): return model\n")

    def lock(self, *packages: str):
        _forget()
        packages = packages or ("lock_plugin_one", "lock_plugin_two")
        catalog = read_catalog([point(name, name) for name in ("lock_base", *packages)])
        return lock(read_recipe(self.workspace.params, catalog), self.workspace, catalog)

    def steps_changed_by(self, edit) -> set[str]:
        """The steps, and the data, whose entries differ after an edit."""
        before = self.lock()
        edit()
        after = self.lock()
        entries = {**before["steps"], "data": before["data"]}, {**after["steps"], "data": after["data"]}
        return {name for name in entries[0] if entries[0][name] != entries[1][name]}


def _forget() -> None:
    """Let the plugins be imported afresh."""
    for name in [name for name in sys.modules if name.startswith("lock_")]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def place(tmp_path, monkeypatch):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    monkeypatch.syspath_prepend(plugins)
    yield Place(tmp_path / "work", plugins)
    _forget()


def test_without_an_edit_nothing_changes_and_the_text_is_the_same(place):
    assert to_yaml(place.lock()) == to_yaml(place.lock())
    assert place.steps_changed_by(lambda: None) == set()


def test_an_edit_of_the_network_s_module_reaches_the_steps_that_grow_from_it_or_learn_from_it(place):
    everything = {"first", "second", "third", "fourth"}
    assert place.steps_changed_by(lambda: place.write("mynet/build.py", "from . import layers\n")) == everything
    assert place.steps_changed_by(lambda: place.write("mynet/layers.py", "WIDTH = 2\n")) == everything
    assert place.steps_changed_by(lambda: place.write("mynet/__init__.py", "A = 1\n")) == everything
    assert place.steps_changed_by(lambda: place.write("other.py", "def make(): return 1\n")) == {"third", "fourth"}
    assert place.steps_changed_by(lambda: place.write("unrelated.py", "import dvc\n")) == set()


def test_an_edit_of_a_plugin_reaches_the_steps_that_use_it(place):
    package = place.plugins / "lock_plugin_two"
    assert place.steps_changed_by(lambda: (package / "mathematics.py").write_text("A = 1\n")) == {
        "second",
        "third",
        "fourth",
    }
    assert place.steps_changed_by(lambda: (package / "table.json").write_text("{}")) == {"second", "third", "fourth"}
    assert place.steps_changed_by(lambda: (package / "__pycache__").mkdir(exist_ok=True)) == set()
    assert place.steps_changed_by(lambda: (package / "__pycache__" / "x.pyc").write_text("x")) == set()
    assert place.steps_changed_by((package / "mathematics.py").unlink) == {"second", "third", "fourth"}


def test_a_plugin_whose_modules_may_stand_in_a_network_belongs_to_every_later_step(place):
    place.plugin("one", "@hookimpl\ndef register_modules():\n    raise AssertionError('asks for torch')\n")
    mathematics = place.plugins / "lock_plugin_one" / "mathematics.py"
    assert place.steps_changed_by(lambda: mathematics.write_text("A = 1\n")) == {"first", "second", "third", "fourth"}
    place.plugin("one")
    assert place.steps_changed_by(lambda: mathematics.write_text("A = 2\n")) == {"first"}


def test_a_plugin_of_one_file_is_hashed_by_itself(place):
    (place.plugins / "lock_single.py").write_text(PLUGIN.format(name="lock-two", package="math"))
    (place.plugins / "beside.txt").write_text("x")
    entries = []
    for text in ("x", "y"):
        (place.plugins / "beside.txt").write_text(text)
        entries.append(place.lock("lock_plugin_one", "lock_single")["steps"]["second"])
    assert entries[0] == entries[1]
    assert set(entries[0]["plugins"]) == {"lock_base", "lock_single"}


def test_the_data_s_files_and_code_reach_the_data_alone(place):
    place.write("table/part-0.txt", "1")
    place.write("mydata.py", "from mynet.layers import WIDTH\n")
    place.params(data=", read: [table], code: ['mydata:read']")
    assert place.steps_changed_by(lambda: place.write("table/part-0.txt", "2")) == {"data"}
    assert place.steps_changed_by(lambda: place.write("table/part-1.txt", "2")) == {"data"}
    assert place.steps_changed_by(lambda: place.write("mydata.py", "from mynet.layers import WIDTH as A\n")) == {"data"}
    entry = place.lock()["data"]
    assert set(entry["files"]) == {"table/part-0.txt", "table/part-1.txt"}
    assert set(entry["code"]) == {"mydata", "mynet", "mynet.layers"}


def test_a_missing_data_file_is_told(place):
    place.params(data=", read: [table.txt]")
    with pytest.raises(DataError, match=r"no file 'table.txt'") as caught:
        place.lock()
    assert "params.yaml, data" in caught.value.where


def test_a_file_that_parameters_name_is_hashed_by_content(place):
    place.write("weights/a.bin", "1")
    place.params(params="{start: [weights/a.bin], folder: weights/, plain: mynet, no: weights/b.bin}")
    assert place.lock()["steps"]["first"]["files"].keys() == {"weights/a.bin"}
    assert place.steps_changed_by(lambda: place.write("weights/a.bin", "2")) == {"first", "second", "third", "fourth"}
    text = place.workspace.params.read_text().replace("lock-two: {}", "lock-two: {weights: weights/c.bin}", 1)
    place.write("params.yaml", text.replace("weights/a.bin", "x").replace("weights/,", "x,"))
    place.write("weights/c.bin", "1")
    assert place.steps_changed_by(lambda: place.write("weights/c.bin", "2")) == {"second"}


def test_twenty_edits_in_a_row_that_keep_the_size_are_all_noticed(place):
    place.params(params="{start: weights.bin}")
    seen = set()
    for index in range(20):
        place.write("weights.bin", f"{index:08d}")
        place.write("mynet/layers.py", f"WIDTH = {10000 + index}\n")
        entry = place.lock()["steps"]["first"]
        seen.add((entry["files"]["weights.bin"], entry["code"]["mynet.layers"]))
    assert len({file for file, _ in seen}) == len({code for _, code in seen}) == 20


def test_versions_are_those_of_what_the_sources_import(place):
    entry = place.lock()["steps"]["second"]
    assert entry["versions"].keys() >= {"torch", "numpy", "scikit-learn", "safetensors"}
    assert not entry["versions"].keys() & {"prefect", "dvc", "onnx"}
    assert place.steps_changed_by(lambda: place.write("mynet/layers.py", "import onnx, not_there\n")) != set()
    versions = place.lock()["steps"]["second"]["versions"]
    assert versions["not_there"] == "not installed"
    assert versions["onnx"][0].isdigit()


def test_an_upgrade_of_a_library_is_noticed(place, monkeypatch):
    original = lock_module.version_of
    assert place.steps_changed_by(
        lambda: monkeypatch.setattr(lock_module, "version_of", lambda name: "99" if name == "torch" else original(name))
    ) == {"first", "second", "third", "fourth", "data"}


def test_a_factory_without_a_module_and_a_source_that_is_no_python_are_errors_of_the_recipe(place):
    place.write("mynet/layers.py", "x = 1\ndef broken(:\n")
    with pytest.raises(RecipeError, match="no Python") as caught:
        place.lock()
    assert "layers.py, line 2" in caught.value.where
    (place.workspace.root / "mynet" / "build.py").unlink()
    with pytest.raises(RecipeError, match=r"no module 'mynet.build'") as caught:
        place.lock()
    assert "params.yaml, model.factory" in caught.value.where
    place.write("mynet/build.py", "")
    (place.workspace.root / "other.py").unlink()
    with pytest.raises(RecipeError) as caught:
        place.lock()
    assert "pipeline.third.model.factory" in caught.value.where


def test_the_machine_is_named_and_its_measuring_code_hashed(place):
    machine = place.lock()["machine"]
    assert machine["cores"] == os.cpu_count()
    assert machine["processor"]
    assert {"torch", "onnxruntime"} <= machine["versions"].keys()
    assert len(machine["measured_by"]) == 16


def test_every_module_of_the_core_is_said_to_compute_or_not():
    folder = Path(computing.__file__).parent
    modules = {core_module(file) for file in folder.rglob("*.py") if "__pycache__" not in file.parts}
    assert modules - COMPUTES - ASIDE == set(), "say in compress_core/computing.py whether these change a step's result"
    assert not COMPUTES & ASIDE
    assert modules >= COMPUTES
    assert modules >= FOR_DATA | MEASURES
    assert FOR_DATA <= COMPUTES


def test_what_computes_imports_nothing_aside_that_could_change_a_result():
    """The modules aside that a computing one imports are the few that only find, tell or name things."""
    folder = Path(computing.__file__).parent
    imported = set()
    for file in (file for file in folder.rglob("*.py") if core_module(file) in COMPUTES):
        for _, module, names in imports_in(file.read_bytes()):
            if module == "compress_core":
                imported.update(names)
            elif module.startswith("compress_core."):
                imported.add(module.split(".")[1])
    assert imported & ASIDE <= {"catalog", "errors", "hookspecs", "imports", "timing", "watching", "workspace"}


def test_the_core_that_computes_is_hashed_and_the_rest_is_not(tmp_path, monkeypatch):
    source = Path(computing.__file__).parent
    copy = tmp_path / "compress_core"
    for file in source.rglob("*.py"):
        (copy / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(source)).write_bytes(file.read_bytes())
    monkeypatch.setattr(computing, "__file__", str(copy / "computing.py"))
    before = core_hash()
    for name, differs in (("errors", False), ("report/remarks", False), ("training", True), ("masks", True)):
        original = (copy / f"{name}.py").read_text()
        (copy / f"{name}.py").write_text(original + "\nA = 1\n")
        assert (core_hash() != before) is differs, name
        (copy / f"{name}.py").write_text(original)
    (copy / "not_yet_said.py").write_text("")
    assert core_hash() != before


@given(
    st.dictionaries(
        st.text("abcdefghij-_0123456789", min_size=1),
        st.one_of(st.text("0123456789abcdef.e+-_: #", max_size=16), st.integers(0, 9)),
    )
)
def test_a_hash_or_version_is_read_back_as_it_was_written(content):
    text = to_yaml({"steps": content})
    assert YAML(typ="safe").load(text)["steps"] == content
    assert YAML(typ="safe", pure=True).load(text)["steps"] == content


# Imports


def follow(root: Path, module: str):
    return closure([module], Finder(root), Memory(root / ".compress" / "hashes.json"))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CASES = {
    "plain": ("import b, c.d", {"a", "b", "c", "c.d"}),
    "from a package": ("from c import d", {"a", "c", "c.d"}),
    "an attribute of a module": ("from c.d import Net", {"a", "c", "c.d"}),
    "with another name": ("import c.d as x", {"a", "c", "c.d"}),
    "in a function": ("def f():\n    import b", {"a", "b"}),
    "conditional": ("try:\n    import b\nexcept ImportError:\n    import c", {"a", "b", "c"}),
    "by a literal name": ("import importlib\nimportlib.import_module('c.d')", {"a", "c", "c.d"}),
    "relative in a package": ("import p.m", {"a", "p", "p.m", "p.n", "p.q", "p.q.r"}),
    "exported by a star": ("from s import *", {"a", "s", "s.one"}),
    "a namespace": ("from space.inner.x import y", {"a", "space.inner.x"}),
    "a circle": ("import circle1", {"a", "circle1", "circle2"}),
    "out of the package": ("from .. import b", {"a"}),
    "in a text": ("'''\nimport b\n'''", {"a"}),
}


@pytest.mark.parametrize("case", CASES)
def test_imports_are_followed(tmp_path, case):
    text, expected = CASES[case]
    files = {
        "a.py": text,
        "b.py": "",
        "c/__init__.py": "",
        "c/d.py": "class Net: ...",
        "p/__init__.py": "from .n import x",
        "p/m.py": "from . import q",
        "p/n.py": "from .q.r import y",
        "p/q/__init__.py": "",
        "p/q/r.py": "from ..m import z",
        "s/__init__.py": "__all__ = ['one']",
        "s/one.py": "",
        "s/two.py": "",
        "space/inner/x.py": "",
        "circle1.py": "import circle2",
        "circle2.py": "import circle1",
    }
    found = follow(write(tmp_path, files), "a")
    assert set(found.own) == expected
    assert found.missing == set()


def test_what_is_installed_is_named_and_not_followed(tmp_path):
    text = "import os, json\nimport torch.nn as nn\nfrom numpy import linalg\nimport no_such_thing\n"
    found = follow(write(tmp_path, {"a.py": text}), "a")
    assert set(found.own) == {"a"}
    assert found.packages == {"torch", "numpy"}
    assert found.missing == {"no_such_thing"}


def test_a_module_of_the_workspace_hides_an_installed_one_and_one_of_python(tmp_path):
    found = follow(write(tmp_path, {"a.py": "import yaml, queue", "yaml.py": "", "queue.py": ""}), "a")
    assert set(found.own) == {"a", "yaml", "queue"}


def test_a_folder_hides_neither_an_installed_module_nor_one_of_python(tmp_path):
    text = "import numpy.x, json.decoder"
    found = follow(write(tmp_path, {"a.py": text, "numpy/x.py": "", "json/decoder.py": ""}), "a")
    assert set(found.own) == {"a"}
    assert found.packages == {"numpy"}


def test_an_environment_inside_the_workspace_is_not_the_user_s_code(tmp_path, monkeypatch):
    site = tmp_path / ".venv" / "lib" / "site-packages"
    write(tmp_path, {"a.py": "import third", ".venv/lib/site-packages/third/__init__.py": "import nowhere"})
    monkeypatch.syspath_prepend(site)
    found = follow(tmp_path, "a")
    assert (set(found.own), found.packages, found.missing) == ({"a"}, {"third"}, set())


def test_of_a_namespace_only_the_part_that_is_installed_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    files = {
        "work/a.py": "import space.mine, space.theirs",
        "work/space/mine.py": "",
        "site-packages/space/theirs.py": "",
    }
    found = follow(write(tmp_path, files) / "work", "a")
    assert (set(found.own), found.packages) == ({"a", "space.mine"}, {"space"})


def test_a_package_that_is_installed_in_place_is_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "src")
    write(tmp_path, {"work/a.py": "import lib.x", "src/lib/__init__.py": "", "src/lib/x.py": ""})
    assert set(follow(tmp_path / "work", "a").own) == {"a", "lib", "lib.x"}


def test_finding_imports_runs_nothing(tmp_path):
    write(tmp_path, {"a.py": "import b.c\nraise SystemExit", "b/__init__.py": "raise SystemExit", "b/c.py": "1/0"})
    assert set(follow(tmp_path, "a").own) == {"a", "b", "b.c"}
    assert "a" not in sys.modules


@pytest.mark.parametrize("source", [b"x = (", b"\x00", b"# coding: latin-77\n", b"\xff"])
def test_what_is_no_python_is_an_error_of_the_recipe(source):
    with pytest.raises(RecipeError, match="no Python"):
        imports_in(source, Path("a.py"))


# Hashes


def settled(path: Path, text: str) -> Path:
    """A file that looks as if it had lain untouched for long: its change time cannot be set, so the clock is."""
    path.write_text(text)
    return path


@pytest.fixture
def later(monkeypatch):
    """Everything on disk was changed long ago."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10 * SETTLED)


def remembering(folder: Path) -> Memory:
    return Memory(folder / "m" / "hashes.json")


def count_readings(monkeypatch) -> list[Path]:
    from compress_core import hashes

    read: list[Path] = []
    original = hashes.digest
    monkeypatch.setattr(hashes, "digest", lambda path: read.append(path) or original(path))
    return read


def test_a_file_that_lies_untouched_is_read_once(tmp_path, monkeypatch, later):
    read = count_readings(monkeypatch)
    path = settled(tmp_path / "a", "text")
    found = []
    for _ in range(3):
        memory = remembering(tmp_path)
        found.append(memory.hash_of(path))
        memory.save()
    assert len(set(found)) == 1
    assert read == [path]


def test_a_fresh_file_is_read_every_time(tmp_path, monkeypatch):
    read = count_readings(monkeypatch)
    path = settled(tmp_path / "a", "text")
    for _ in range(2):
        memory = remembering(tmp_path)
        memory.hash_of(path)
        memory.save()
    assert len(read) == 2


@pytest.mark.parametrize("trick", ["same size", "old times put back", "replaced"])
def test_a_changed_file_is_read_again(tmp_path, later, trick):
    path = settled(tmp_path / "a", "text")
    stamp = path.stat()
    memory = remembering(tmp_path)
    before = memory.hash_of(path)
    memory.save()
    if trick == "replaced":
        other = settled(tmp_path / "b", "tixt")
        os.replace(other, path)
    else:
        path.write_text("tixt")
    if trick != "same size":
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert remembering(tmp_path).hash_of(path) != before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"hashes": 1, "facts": {}}', '{"hashes": {"a": 3}, "facts": {}}'])
def test_a_damaged_memory_is_an_empty_one(tmp_path, content):
    path = settled(tmp_path / "a", "text")
    expected = remembering(tmp_path).hash_of(path)
    write(tmp_path, {"m/hashes.json": content})
    assert remembering(tmp_path).hash_of(path) == expected


def test_the_memory_keeps_itself_out_of_git(tmp_path):
    memory = remembering(tmp_path)
    memory.note("key", [1])
    memory.save()
    assert (tmp_path / "m" / ".gitignore").read_text() == "*\n"
    assert remembering(tmp_path).fact("key") == [1]


def test_a_tree_s_hash_changes_with_names_and_contents(tmp_path):
    a, b = settled(tmp_path / "a", "1"), settled(tmp_path / "b", "2")
    both = hash_tree([a, b], tmp_path)
    assert both == hash_tree([b, a], tmp_path)
    assert both != hash_tree([a], tmp_path)
    b.rename(tmp_path / "c")
    assert both != hash_tree([a, tmp_path / "c"], tmp_path)


# The command


COMMAND = """\
reference: base
seed: 0
threads: 1
device: cpu
precision: float32
data: {source: digits}
model: {factory: "mynet:make"}
task: {name: classification}
pipeline:
  base: {input: none, teacher: none, use: {clip: {share: 0.5}}}
"""


def run_command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "compress_core.lock"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_command_writes_the_same_bytes_and_an_error_leaves_them(tmp_path):
    write(tmp_path, {"params.yaml": COMMAND, "mynet.py": "def make(): ..."})
    assert run_command(tmp_path).returncode == 0
    first = (tmp_path / "step.lock.yaml").read_bytes()
    assert set(YAML(typ="safe").load(first)) == {"data", "machine", "steps"}
    assert b"{" not in first, "block style"
    assert run_command(tmp_path).returncode == 0
    assert (tmp_path / "step.lock.yaml").read_bytes() == first
    write(tmp_path, {"params.yaml": COMMAND.replace("share: 0.5", "share: 5")})
    failed = run_command(tmp_path)
    assert failed.returncode == 2
    assert "params.yaml, line 10" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (tmp_path / "step.lock.yaml").read_bytes() == first


def test_the_command_imports_nothing_heavy(tmp_path):
    write(tmp_path, {"params.yaml": COMMAND, "mynet.py": "import torch\ndef make(): ..."})
    found = run_command(tmp_path, "-X", "importtime")
    assert found.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert "compress_core" in imported
    assert not imported & {"torch", "prefect", "dvc", "sklearn", "numpy", "accelerate", "onnx", "mynet"}
