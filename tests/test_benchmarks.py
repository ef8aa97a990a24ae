"""The runner of the benchmarks, with a small benchmark of its own; and that the pages say what was measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import Bench, Figure
from benchmarks.harness.machine import extensions
from benchmarks.harness.page import BEGIN, END, PAGE, README, goals, page, with_goals
from benchmarks.harness.results import RESULTS, entries, merge, read
from benchmarks.harness.running import benchmarks, chosen, run_benchmark
from compress_core.errors import ArtifactError, DataError, RecipeError

ROOT = Path(__file__).parent.parent
FAKE = '''"""Counts up to a number.

Time: none.
"""
from benchmarks.harness import Figure
def run(bench):
    bench.say("counting")
    yield Figure("count", 3.0 if bench.full else 2.0, "times", True, "one", 1.0, goal=2.5, seeds=bench.seeds)
    yield Figure("size", 10.0, "bytes", False, "twice", 20.0)
'''


def entry(benchmark: str = "fake", mode: str = "default", **changes: object) -> dict[str, object]:
    figure = Figure(**{"name": "a", "value": 1.0, "unit": "s", "higher_is_better": False, "peer": "b", **changes})  # type: ignore[arg-type]
    return entries(benchmark, mode, [figure], seconds=3.2, versions={"torch": "1"}, machine="a machine")[0]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with one benchmark, `counting`."""
    package = tmp_path / "fakes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_helper.py").write_text('"""No benchmark."""')
    (package / "counting.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return "fakes"


def test_a_ratio_above_one_is_better_whichever_direction_is() -> None:
    assert Figure("a", 4.0, "s", False, "b", 8.0).ratio == 2.0
    assert Figure("a", 4.0, "%", True, "b", 8.0).ratio == 0.5
    assert Figure("a", 4.0, "%", True, "b").ratio is None


@pytest.mark.parametrize(("higher", "value", "met"), [(True, 1.9, False), (True, 2.0, True), (False, 2.1, False)])
def test_a_goal_is_met_in_the_direction_that_is_better(higher: bool, value: float, met: bool) -> None:
    assert Figure("a", value, "points", higher, "b", goal=2.0).met is met


def test_a_figure_holds_all_that_it_rests_on(fake: str, tmp_path: Path) -> None:
    said: list[str] = []
    first, second = run_benchmark("counting", Bench(seeds=(0, 1), say=said.append), package=fake)
    assert (first["value"], first["ratio"], first["goal"], first["met"]) == (2.0, 2.0, 2.5, False)
    assert (second["ratio"], second["met"], second["seeds"]) == (2.0, None, [])
    assert first["seeds"] == [0, 1] and first["seconds"] >= 0
    assert {"python", "torch", "onnxruntime"} <= set(first["versions"])
    assert "core" in first["machine_kind"] and str(Path.home()) not in json.dumps(first)
    assert said == ["counting", "count: 2 times beside 1 of one: goal 2.5 NOT met", "size: 10 bytes beside 20 of twice"]
    assert run_benchmark("counting", Bench(full=True), package=fake)[0]["met"]
    assert benchmarks(tmp_path / "fakes") == {"counting": "Counts up to a number.\n\nTime: none."}


def test_a_new_run_replaces_its_own_figures_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks" / "results.json"
    merge([entry("b")], path)
    merge([entry("a"), entry("a", name="z")], path)
    merge([entry("b", "full")], path)
    before = path.read_bytes()
    found = merge([entry("a", value=2.0)], path)
    assert [(one["benchmark"], one["mode"], one["value"]) for one in found] == [
        ("a", "default", 2.0),
        ("b", "default", 1.0),
        ("b", "full", 1.0),
    ]
    assert found == read(path)
    merge([entry("a"), entry("a", name="z")], path)
    assert path.read_bytes() == before


def test_two_figures_of_one_name_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    figure = Figure("a", 1.0, "s", False, "b")
    with pytest.raises(ValueError, match="'a'"):
        entries("fake", "default", [figure, figure], seconds=1, versions={}, machine="")
    (tmp_path / "results.json").write_text('[{"name": "a"}]')
    with pytest.raises(ArtifactError, match="damaged"):
        read(tmp_path / "results.json")


def test_an_unknown_benchmark_is_told_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'sparse'"):
        chosen(["sparsse"], {"sparse": "", "other": ""})
    assert chosen(["b", "a", "b"], {"a": "", "b": ""}) == ["b", "a"]


def test_missing_data_are_told_with_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMPRESS_DATA", raising=False)
    with pytest.raises(DataError, match="COMPRESS_DATA is not set"):
        Bench().data("mnist")
    monkeypatch.setenv("COMPRESS_MODELS", str(tmp_path))
    with pytest.raises(DataError, match=r"no 'net\.safetensors'"):
        Bench().weights("net")
    (tmp_path / "net.safetensors").touch()
    assert Bench().weights("net") == tmp_path / "net.safetensors"


def test_the_command_goes_on_after_a_failure_and_ends_with_status_2(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
import benchmarks; benchmarks.__path__.append({str(tmp_path)!r})
from benchmarks.harness import results, running, page
results.RESULTS = Path({str(tmp_path / "out" / "results.json")!r})
running.benchmarks.__defaults__ = (Path({str(tmp_path)!r}),)
results.merge.__defaults__ = results.read.__defaults__ = (results.RESULTS,)
page.write_pages = lambda found: None
from benchmarks.__main__ import app
app(["--all", "--json"])
"""
    (tmp_path / "a_broken.py").write_text("def run(bench):\n    raise RuntimeError('no')\n")
    (tmp_path / "b_refusing.py").write_text("def run(bench):\n    yield from [bench.data('nothing')]\n")
    (tmp_path / "counting.py").write_text(FAKE)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "failed: a_broken, b_refusing" in done.stderr and "RuntimeError: no" in done.stderr
    assert [one["name"] for one in json.loads(done.stdout)] == ["count", "size"]
    assert [one["name"] for one in read(tmp_path / "out" / "results.json")] == ["count", "size"]


def test_the_list_imports_nothing_heavy() -> None:
    code = """
import sys
from benchmarks.__main__ import app
try:
    app(["--list"])
finally:
    print([name for name in ("torch", "onnxruntime") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"{name}\n" in done.stdout for name in benchmarks())


@pytest.mark.parametrize("name", benchmarks())
def test_every_benchmark_says_what_it_compares_and_how_long_it_takes(name: str) -> None:
    about = benchmarks()[name]
    assert about.splitlines()[0].endswith(".")
    assert "Time:" in about and "--full" in about


def test_a_processor_s_vector_extensions_are_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name : x\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    assert extensions(tmp_path / "cpuinfo") == ["AVX2", "AVX-512", "VNNI"]
    assert extensions(tmp_path / "nothing") == []


def test_the_page_shows_a_goal_that_is_not_met_as_not_met() -> None:
    found = [
        entry(name="lost", value=3.0, goal=2.0, peer_value=1.5, note="why"),
        entry(name="won", value=1.0, goal=2.0),
    ]
    text = page(found[:1])
    assert "| lost | 3 s | b: 1.5 s | 0.5 | at most 2 s | **not met** |" in text and "- lost: why" in text
    assert "| fake | won | 1 s | at most 2 s | met |" in goals(found)
    assert with_goals(f"before\n{BEGIN}old\n{END}after\n", found) == f"before\n{BEGIN}\n{goals(found)}\n{END}after\n"
    assert with_goals("no marks\n", found) == "no marks\n"


def test_the_pages_say_what_was_measured() -> None:
    found = read(RESULTS)
    assert page(found) == PAGE.read_text(), "run `python -m benchmarks.harness.page`"
    readme = README.read_text()
    assert with_goals(readme, found) == readme, "run `python -m benchmarks.harness.page`"


def test_every_result_is_of_a_benchmark_that_exists() -> None:
    assert {one["benchmark"] for one in read(RESULTS)} <= set(benchmarks())
