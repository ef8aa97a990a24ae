"""The example of a plugin, installed from its wheel beside compress's in a fresh environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.workspaces import HEAD

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests" / "example_plugin"

RECIPE = f"""\
{HEAD}  baseline:
    input: none
    teacher: none
    use:
      tune:
        epochs: 2
        learning_rate: 0.01
  sparse:
    input: baseline
    teacher: none
    use:
      sparsify:
        keep: 2
        of: 4
      tune:
        epochs: 1
  wrong:
    input: baseline
    teacher: none
    use:
      sparsify:
        keep: 2
        of: 37
"""


class Environment:
    """A virtual environment that borrows the dependencies of this one, but neither compress nor its plugins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (self.site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def install(self, wheel: Path) -> None:
        """Install one wheel, without looking for anything else."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), "install"]
        run(*pip, "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel), cwd=self.folder)

    def python(self, *arguments: str, cwd: Path, status: int = 0, **variables: str) -> str:
        """What a python of this environment prints."""
        return run(str(self.folder / "bin" / "python"), *arguments, cwd=cwd, status=status, **variables)


def run(*command: str, cwd: Path, status: int = 0, **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**clean, "PYTHONDONTWRITEBYTECODE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def build(source: Path, folder: Path) -> Path:
    isolation = ["--no-isolation"] if find_spec("hatchling") else []
    run(sys.executable, "-m", "build", "--wheel", *isolation, "-o", str(folder), str(source), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("venv"))
    made.install(build(ROOT, tmp_path_factory.mktemp("compress")))
    made.install(build(EXAMPLE, tmp_path_factory.mktemp("example")))
    return made


@pytest.fixture
def stranger(environment, tmp_path):
    """Make a plugin of a third party, as pip would lay it out, in a folder of its own; returns that folder."""

    def make(distribution: str, points: str, **modules: str) -> Path:
        folder = tmp_path / distribution
        about = folder / f"{distribution}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[compress]\n{points}\n")
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(text)
        return folder

    return make


def test_both_come_from_their_wheels_and_not_from_this_checkout(environment, tmp_path):
    packages = ("compress_core", "compress_clip", "compress_example")
    program = f"import {', '.join(packages)}; print({', '.join(f'{name}.__file__' for name in packages)})"
    for place in environment.python("-c", program, cwd=tmp_path).split():
        assert Path(place).is_relative_to(environment.site)


def test_the_wheel_holds_the_kit_and_the_mark_of_typed_packages(environment):
    assert (environment.site / "compress_core" / "testing" / "__init__.py").is_file()
    assert (environment.site / "compress_core" / "py.typed").is_file()


def test_the_catalog_names_the_plugin_and_its_distribution(environment, tmp_path):
    program = (
        "from compress_core.catalog import catalog\n"
        "kind = catalog().techniques['sparsify']\n"
        "print(catalog().owner(kind), [p.name for p in catalog().plugins if p.distribution == 'compress-example'])\n"
    )
    printed = environment.python("-c", program, cwd=tmp_path)
    assert "distribution='compress-example', version='0.1.0'" in printed
    assert "['jsonlines', 'sparsify']" in printed


@pytest.mark.slow
def test_its_own_tests_with_the_conformance_kit_pass(environment, tmp_path):
    printed = environment.python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLE), str(EXAMPLE / "tests"), cwd=tmp_path
    )  # fmt: skip
    assert "failed" not in printed
    assert "[100%]" in printed


@pytest.fixture(scope="module")
def workspace(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "params.yaml").write_text(RECIPE)
    environment.python("-m", "compress_core.data", cwd=folder)
    environment.python("-m", "compress_core.stage", "baseline", cwd=folder)
    return folder


def test_a_recipe_uses_it_and_its_zeros_stay_while_training(environment, workspace):
    environment.python("-m", "compress_core.stage", "sparse", cwd=workspace)
    metrics = json.loads((workspace / "metrics" / "sparse.json").read_text())
    dense = json.loads((workspace / "metrics" / "baseline.json").read_text())
    weights = 64 * 16 + 16 * 10
    assert dense["nonzero"] - metrics["nonzero"] == weights // 2
    assert f"sparsify: {weights // 2} weights went; 0 of 2 layers do not fit" in metrics["notes"]


def test_its_watcher_writes_the_curves_and_the_metrics_of_a_stage(environment, workspace):
    lines = [json.loads(line) for line in (workspace / "runs" / "baseline" / "scalars.jsonl").read_text().splitlines()]
    losses = [line["value"] for line in lines if line.get("name") == "train/loss"]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert (
        lines[-1]["metrics"]["quality"] == json.loads((workspace / "metrics" / "baseline.json").read_text())["quality"]
    )


def test_its_refusal_names_the_step_and_how_to_mend_it(environment, workspace):
    printed = environment.python("-m", "compress_core.stage", "wrong", cwd=workspace, status=2)
    assert printed.endswith(
        "error: params.yaml, pipeline.wrong: sparsify: no layer has a multiple of 37 inputs\n"
        "  to mend it: choose an `of` that divides the inputs of a layer\n"
    )
    assert not (workspace / "artifacts" / "wrong").exists()
    (line,) = (workspace / "runs" / "wrong" / "scalars.jsonl").read_text().splitlines()
    assert "no layer has a multiple of 37 inputs" in json.loads(line)["error"]


def test_without_the_plugin_the_recipe_says_what_is_missing(environment, workspace):
    printed = environment.python(
        "-m", "compress_core.stage", "sparse", cwd=workspace, status=2, COMPRESS_DISABLED_PLUGINS="sparsify"
    )
    assert "params.yaml, line 26, pipeline.sparse.use.sparsify: unknown technique 'sparsify'" in printed
    assert "`compress plugins` lists every technique" in printed


def test_a_plugin_that_fails_on_import_stops_only_recipes_that_need_it(environment, workspace, stranger):
    path = stranger("compress-torn", "torn = compress_torn", compress_torn="import a_package_that_is_nowhere\n")
    environment.python("-m", "compress_core.cli", "check", cwd=workspace, PYTHONPATH=str(path))
    text = (workspace / "params.yaml").read_text()
    other = workspace.parent / f"{workspace.name}-torn"
    other.mkdir()
    (other / "params.yaml").write_text(text.replace("sparsify:\n        keep: 2\n        of: 37", "torn: {}"))
    printed = environment.python("-m", "compress_core.cli", "check", cwd=other, status=2, PYTHONPATH=str(path))
    assert "unknown technique 'torn'" in printed
    assert (
        "plugin 'torn' of compress-torn is broken: ModuleNotFoundError: No module named 'a_package_that_is_nowhere'"
    ) in printed


def test_two_plugins_with_one_name_are_an_error_that_names_both(environment, workspace, stranger):
    path = stranger("compress-twin", "sparsify = compress_twin", compress_twin="")
    printed = environment.python("-m", "compress_core.cli", "check", cwd=workspace, status=2, PYTHONPATH=str(path))
    assert "error: two plugins are called 'sparsify': " in printed
    assert "compress_example of compress-example" in printed
    assert "compress_twin of compress-twin" in printed
    assert "to mend it: uninstall one of them, or leave both out with COMPRESS_DISABLED_PLUGINS=sparsify" in printed


def test_two_techniques_with_one_name_are_an_error_that_names_both(environment, workspace, stranger):
    module = (
        "from compress_core import hookimpl, Technique\n"
        "class Sparsify(Technique):\n    name = 'sparsify'\n    def apply(self, model, run): return model\n"
        "@hookimpl\ndef register_techniques(): return [Sparsify]\n"
    )
    path = stranger("compress-twin", "twin = compress_twin", compress_twin=module)
    printed = environment.python("-m", "compress_core.cli", "check", cwd=workspace, status=2, PYTHONPATH=str(path))
    assert printed == (
        "error: plugins 'sparsify' and 'twin' both have a Technique called 'sparsify'\n"
        "  to mend it: uninstall one of them, or leave one out with COMPRESS_DISABLED_PLUGINS=twin\n"
    )
    environment.python(
        "-m", "compress_core.cli", "check", cwd=workspace, PYTHONPATH=str(path), COMPRESS_DISABLED_PLUGINS="twin"
    )


def test_a_misspelt_hook_is_an_error_with_the_right_spelling(environment, workspace, stranger):
    module = "from compress_core import hookimpl\n@hookimpl\ndef register_technique(): return []\n"
    path = stranger("compress-typo", "typo = compress_typo", compress_typo=module)
    printed = environment.python("-m", "compress_core.cli", "check", cwd=workspace, status=2, PYTHONPATH=str(path))
    assert "error: plugin 'typo' of compress-typo 1.0 does not fit the hooks: " in printed
    assert "to mend it: register_technique: did you mean 'register_techniques'?" in printed


def test_the_wheels_name_their_entry_points(environment):
    points = (environment.site / "compress_example-0.1.0.dist-info" / "entry_points.txt").read_text()
    assert points.split() == [
        "[compress]",
        *("jsonlines", "=", "compress_example.watcher"),
        *("sparsify", "=", "compress_example"),
    ]
