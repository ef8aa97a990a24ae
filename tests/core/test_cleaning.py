"""Cleaning takes results of steps that left the recipe, and remains of writing; whatever else lies there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_core.cleaning import leftovers, remove
from compress_core.errors import ArtifactError
from compress_core.workspace import Workspace
from tests.doors import call, contents, lay_out, recipe_of
from tests.workspaces import SMALL


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with results of its steps and of one that is gone, as the working directory."""
    folder = lay_out(tmp_path / "workspace")
    for name in ("data", "baseline", "clipped", "onnx", "student", "gone"):
        write(folder / "artifacts" / name / "manifest.json")
        write(folder / "artifacts" / name / "model.safetensors")
        if name != "data":
            write(folder / "runs" / name / "events")
            write(folder / "metrics" / f"{name}.json")
    write(folder / "report" / "report.json")
    monkeypatch.chdir(folder)
    return folder


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def found(folder: Path) -> set[str]:
    paths = leftovers(recipe_of(folder), Workspace(folder))
    assert paths == sorted(paths)
    return {str(path.relative_to(folder)) for path in paths}


def test_the_results_of_a_step_that_left_the_recipe_go(here: Path) -> None:
    assert found(here) == {"artifacts/gone", "runs/gone", "metrics/gone.json"}


def test_folders_and_files_of_other_names_stay(here: Path) -> None:
    write(here / "runs" / "mine" / "precious.ckpt")
    write(here / "metrics" / "accuracy.json")
    assert found(here) == {"artifacts/gone", "runs/gone", "metrics/gone.json"}


def test_a_step_that_only_dvc_remembers_is_found_by_its_stage(here: Path) -> None:
    (here / "dvc.lock").write_text("schema: '2.0'\nstages:\n  step@old:\n    cmd: x\n  data:\n    cmd: y\n")
    write(here / "metrics" / "old.json")
    assert found(here) == {"artifacts/gone", "runs/gone", "metrics/gone.json", "metrics/old.json"}


def test_a_workspace_without_results_has_nothing_to_clean(tmp_path: Path) -> None:
    assert found(lay_out(tmp_path / "workspace")) == set()


def test_remains_of_writing_that_was_cut_off_go(here: Path) -> None:
    remains = {
        "artifacts/.clipped.x1y2.part/model.safetensors",
        "artifacts/.clipped.x1y2.part.part/manifest.json",
        "metrics/.clipped.json.part",
        ".step.lock.yaml.part",
        ".report.z3.part/report.html",
    }
    for name in remains:
        write(here / name)
    before = found(here)
    assert {".step.lock.yaml.part", ".report.z3.part", "metrics/.clipped.json.part"} <= before
    remove(leftovers(recipe_of(here), Workspace(here)))
    assert not [name for name in remains if (here / name).exists()]


def test_what_no_step_has_made_stays(here: Path) -> None:
    others = {
        "artifacts/.gitignore",
        "artifacts/none/.gitkeep",
        "artifacts/notes.md",
        "artifacts/my-checkpoints/weights.bin",
        "metrics/README",
        "runs/summary.txt",
        "notes.part",
    }
    for name in others:
        write(here / name)
    before = contents(here)
    remove(leftovers(recipe_of(here), Workspace(here)))
    gone = set(before) - set(contents(here))
    assert {Path(name).parts[:2] for name in gone} == {
        ("artifacts", "gone"),
        ("runs", "gone"),
        ("metrics", "gone.json"),
    }
    assert all((here / name).exists() for name in others)


def test_a_link_is_removed_and_what_it_shows_stays(here: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "manifest.json")
    (here / "artifacts" / "linked").symlink_to(tmp_path / "elsewhere")
    remove(leftovers(recipe_of(here), Workspace(here)))
    assert not (here / "artifacts" / "linked").is_symlink()
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def test_what_cannot_be_removed_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(ArtifactError, match="Permission denied") as caught:
        remove(leftovers(recipe_of(here), Workspace(here)))
    assert caught.value.where.endswith("artifacts/gone")


def test_the_command_lists_before_it_removes(here: Path) -> None:
    listed = call("compress", "clean", "--dry-run")
    assert listed.out.splitlines() == [
        "would remove artifacts/gone",
        "would remove metrics/gone.json",
        "would remove runs/gone",
    ]
    assert (here / "artifacts" / "gone").is_dir()
    assert call("compress", "clean").out.splitlines()[0] == "removed artifacts/gone"
    assert not (here / "artifacts" / "gone").exists()
    assert call("compress", "clean").out == "nothing to remove\n"
    assert call("compress", "clean", "--json").out == "[]\n"


def test_a_broken_recipe_cleans_nothing(here: Path) -> None:
    (here / "params.yaml").write_text(SMALL.replace("clip:", "clipp:"))
    before = contents(here)
    assert call("compress", "clean").status == 2
    assert contents(here) == before
