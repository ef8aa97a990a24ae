"""A folder takes its place whole or not at all, and a manifest notices every alteration."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compress_core.artifact import save
from compress_core.errors import ArtifactError
from compress_core.files import (
    MANIFEST,
    digest,
    read_manifest,
    refuse_foreign,
    replacing,
    to_json,
    write_manifest,
    write_tensors,
    write_text,
)


def write(folder: Path, name: str = "old") -> Path:
    with replacing(folder) as temporary:
        (temporary / "data.txt").write_text(name)
        write_manifest(temporary, {"kind": "model", "name": name})
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_replaces_the_one_before_whole(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "stale.txt").write_text("of before")
    write(tmp_path / "a", "new")
    assert read_manifest(tmp_path / "a")["name"] == "new"
    assert names(tmp_path / "a") == ["data.txt", MANIFEST]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    write(tmp_path / "a")

    def fail():
        with replacing(tmp_path / "a") as temporary:
            (temporary / "data.txt").write_text("half")
            raise error

    with pytest.raises(ArtifactError if error is OSError else error):
        fail()
    assert read_manifest(tmp_path / "a")["name"] == "old"
    assert (tmp_path / "a" / "data.txt").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_until_the_block_ends_the_old_folder_is_there(tmp_path):
    write(tmp_path / "a")
    with replacing(tmp_path / "a") as temporary:
        assert read_manifest(tmp_path / "a")["name"] == "old"
        assert list(temporary.iterdir()) == []
        assert temporary.parent == tmp_path, "only within one file system is a rename atomic"


def test_parents_are_made_and_the_folder_can_be_read_by_others(tmp_path):
    write(tmp_path / "deep" / "er" / "a")
    assert (tmp_path / "deep" / "er" / "a").stat().st_mode & 0o777 == 0o755


def test_a_full_disk_is_told_with_the_folder(tmp_path):
    def fill():
        with replacing(tmp_path / "a"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ArtifactError, match="No space left") as caught:
        fill()
    assert caught.value.where == str(tmp_path / "a")
    assert "free space" in caught.value.mend


def test_a_place_that_cannot_be_written_is_told_with_its_name(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError) as caught, replacing(tmp_path / "file" / "a"):
        pass
    assert caught.value.where == str(tmp_path / "file" / "a")
    with pytest.raises(ArtifactError) as caught:
        write_text(tmp_path / "file" / "b.txt", "text")
    assert caught.value.where == str(tmp_path / "file" / "b.txt")
    assert names(tmp_path) == ["file"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_text_is_whole_for_every_reader_while_many_write_it(tmp_path):
    path = tmp_path / "lock.yaml"
    write_text(path, "0" * 50_000)

    def write(digit):
        for _ in range(100):
            write_text(path, str(digit) * 50_000)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, digit) for digit in range(4)]
        while not all(writer.done() for writer in writers):
            text = path.read_text()
            assert len(text) == 50_000 and len(set(text)) == 1
        for writer in writers:
            writer.result()
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock.yaml"]


@pytest.mark.parametrize("lay", ["file", "folder"])
def test_what_is_no_artifact_is_never_replaced(tmp_path, lay):
    place = tmp_path / "mine"
    precious = place if lay == "file" else place / "thesis.txt"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")
    with pytest.raises(ArtifactError, match="holds other files") as error:
        refuse_foreign(place)
    assert error.value.mend == "name a new folder"
    with pytest.raises(ArtifactError, match="holds other files"):
        save(nn.Linear(2, 2), place, factory="torch.nn:Linear", params={"in_features": 2, "out_features": 2})
    assert precious.read_text() == "years of work"


def test_an_artifact_an_empty_folder_and_no_folder_may_be_replaced(tmp_path):
    write(tmp_path / "old")
    (tmp_path / "empty").mkdir()
    for name in ("old", "empty", "none"):
        save(nn.Linear(2, 2), tmp_path / name, factory="torch.nn:Linear", params={"in_features": 2, "out_features": 2})
        assert (tmp_path / name / "model.safetensors").is_file()


def test_the_same_content_has_the_same_bytes(tmp_path):
    content = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(True)}
    write_tensors(tmp_path / "one", content)
    write_tensors(tmp_path / "two", dict(reversed(content.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (
        to_json({"b": 1, "a": [1.5, "ä"]})
        == to_json({"a": [1.5, "ä"], "b": 1})
        == '{\n "a": [\n  1.5,\n  "ä"\n ],\n "b": 1\n}\n'
    )


def test_tensors_that_share_memory_are_written_as_copies(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    columns = {"x": base, "target": base, "turned": base.t(), "part": base[1:]}
    write_tensors(tmp_path / "one", columns)
    found = load_file(tmp_path / "one")
    assert all(torch.equal(found[name], column) for name, column in columns.items())


def test_no_figure_that_is_no_number_gets_into_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})


def test_a_digest_is_sha_256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_manifest_names_every_file_below(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x.bin").write_bytes(b"abc")
        write_manifest(temporary, {"kind": "export"})
    files = read_manifest(tmp_path / "a", kind="export")["files"]
    assert files.keys() == {"deep/x.bin"}
    assert files["deep/x.bin"]["bytes"] == 3


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    write(tmp_path / "a")
    original = Path.rename

    def fail(path, target):
        if path.name.endswith(".part") and target == tmp_path / "a" and (path / "data.txt").read_text() == "new":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ArtifactError, match="Permission denied"):
        write(tmp_path / "a", "new")
    assert read_manifest(tmp_path / "a")["name"] == "old"
    assert names(tmp_path) == ["a"]


def test_tensors_that_do_not_fit_on_the_disk_are_told(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        write_tensors(tmp_path / "no" / "folder", {"a": torch.zeros(2)})
    assert caught.value.where == str(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "data.txt").write_text("odd"), "checksum differs"),
        (lambda folder: (folder / "data.txt").write_text("ol"), "2 bytes instead of 3"),
        (lambda folder: (folder / "data.txt").unlink(), "data.txt is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "there is no manifest.json"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "damaged"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff"), "damaged"),
        (lambda folder: edit(folder, format=99), "format 99"),
        (lambda folder: edit(folder, kind="data"), "'data', not 'model'"),
        (lambda folder: edit(folder, files={"data.txt": 3}), "damaged"),
        (lambda folder: edit(folder, files={"../x": {"bytes": 1, "sha256": ""}}), "outside the folder"),
        (lambda folder: edit(folder, files={"/etc/passwd": {"bytes": 1, "sha256": ""}}), "outside the folder"),
    ],
)
def test_an_alteration_is_told_with_the_folder(tmp_path, change, message):
    folder = write(tmp_path / "a")
    change(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_manifest(folder, kind="model")
    assert caught.value.where == str(folder)


def edit(folder: Path, **fields) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **fields}))
