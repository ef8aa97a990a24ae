"""Checkpoints rewritten tensor by tensor: the integers, the way back, the files, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compress_core.checkpoints import restore, rewriting, shrink
from compress_core.checkpoints.numbers import from_float32, to_float32
from compress_core.errors import ArtifactError
from tests.doors import call

INDEX = "model.safetensors.index.json"


def net(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (48, 100), "a.bias": (48,), "conv.weight": (32, 16, 3, 3), "tiny.weight": (2, 3)}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return tensors | {"steps": torch.tensor(7), "nothing": torch.zeros(0, 4), "mask": torch.ones(3, dtype=torch.bool)}


def closed_form(weight: torch.Tensor, group: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers and scales (out, blocks) by the equations, on the whole tensor at once."""
    rows = weight.float().reshape(-1, group or weight[0].numel())
    scale = rows.abs().amax(1) / 127
    integers = (rows * (1 / scale)[:, None]).round().to(torch.int8)
    return integers.reshape(weight.shape), scale.reshape(weight.shape[0], -1)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(net(), path, {"format": "pt"})
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder as Hugging Face writes it: two shards, their index and a configuration."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    tensors, places = net(), {}
    for number, names in enumerate((["a.weight", "steps"], ["a.bias", "conv.weight", "tiny.weight"]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text('{"model_type": "small"}')
    (folder / "pytorch_model.bin").write_text("the same weights once more")
    return folder


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group", [None, 4])
def test_the_integers_are_those_of_the_closed_form(tmp_path: Path, dtype: torch.dtype, group: int | None) -> None:
    before = net(dtype)
    save_file(before, tmp_path / "in.safetensors", {"format": "pt"})
    report = shrink(tmp_path / "in.safetensors", tmp_path / "out.safetensors", group=group)
    found = load_file(tmp_path / "out.safetensors")
    errors = {fate.name: fate.error for fate in report.tensors}
    for name in ("a.weight", "conv.weight"):
        integers, scale = closed_form(before[name], group)
        assert torch.equal(found.pop(name), integers)
        torch.testing.assert_close(found[f"{name}_scale"], scale, rtol=2e-7, atol=0)
        scales = found.pop(f"{name}_scale").double().repeat_interleave(before[name][0].numel() // scale.shape[1], 1)
        real, lost = before[name].float().double(), integers.double() * scales.reshape(before[name].shape)
        assert errors[name] == pytest.approx(float((real - lost).norm() / real.norm()), rel=1e-3)
    assert set(found) == set(before) - {"a.weight", "conv.weight"}
    assert all(torch.equal(found[name], before[name]) and found[name].dtype == before[name].dtype for name in found)
    assert report.worst is not None and report.worst.error == max(error for error in errors.values() if error)
    assert (report.bytes_before, report.bytes_after) == tuple(
        (tmp_path / name).stat().st_size for name in ("in.safetensors", "out.safetensors")
    )
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("group", [None, 20])
def test_pieces_give_the_bytes_of_the_whole(whole: Path, monkeypatch: pytest.MonkeyPatch, group: int | None) -> None:
    """Pieces of 32 numbers are shorter than every row, those of 250 hold some rows."""
    out = whole.parent
    shrink(whole, out / "whole.safetensors", group=group)
    restore(out / "whole.safetensors", out / "back.safetensors")
    for size in (32, 250):
        monkeypatch.setattr(rewriting, "PIECE", size)
        monkeypatch.setattr(rewriting, "COPIED", size)
        shrink(whole, out / f"{size}.safetensors", group=group)
        restore(out / f"{size}.safetensors", out / f"back-{size}.safetensors")
        assert (out / f"{size}.safetensors").read_bytes() == (out / "whole.safetensors").read_bytes()
        assert (out / f"back-{size}.safetensors").read_bytes() == (out / "back.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_restored_weights_are_integers_times_scales(whole: Path, dtype: str) -> None:
    small, back = whole.with_name("small.safetensors"), whole.with_name("back.safetensors")
    shrink(whole, small)
    restore(small, back, dtype=dtype)
    before, held, found = load_file(whole), load_file(small), load_file(back)
    assert set(found) == set(before)
    for name in ("a.weight", "conv.weight"):
        scale = held[f"{name}_scale"].reshape(-1, *[1] * (before[name].dim() - 1))
        assert torch.equal(found[name], (held[name].float() * scale).to(getattr(torch, dtype)))
        assert ((found[name].float() - before[name]).abs() <= scale * 0.5 + before[name].abs() / 128).all()
    assert torch.equal(found["a.bias"], before["a.bias"])


def test_a_row_of_zeros_and_an_empty_integer_tensor_survive(tmp_path: Path) -> None:
    weight = net()["a.weight"]
    weight[3] = 0
    empty = {"none": torch.zeros(0, 4, dtype=torch.int8), "none_scale": torch.ones(1)}
    save_file({"a.weight": weight, **empty}, tmp_path / "in.safetensors")
    shrink(tmp_path / "in.safetensors", tmp_path / "small.safetensors")
    restore(tmp_path / "small.safetensors", tmp_path / "back.safetensors")
    found = load_file(tmp_path / "back.safetensors")
    assert found["a.weight"][3].count_nonzero() == 0 and found["a.weight"][2].count_nonzero() > 0
    assert found["none"].shape == (0, 4)


@given(arrays("<u2", 64))
@settings(max_examples=50, deadline=None)
def test_bfloat16_is_rounded_as_torch_does(bits: object) -> None:
    held = torch.from_numpy(bits.copy()).view(torch.bfloat16)  # type: ignore[attr-defined]
    wide = to_float32(bits.view("u1"), "BF16")  # type: ignore[attr-defined]
    torch.testing.assert_close(torch.from_numpy(wide.copy()), held.float(), rtol=0, atol=0, equal_nan=True)


@given(arrays("<f4", 64, elements=st.floats(width=32)))
@settings(max_examples=50, deadline=None)
def test_float32_becomes_bfloat16_as_in_torch(values: object) -> None:
    found = torch.from_numpy(from_float32(values, "BF16")).view(torch.bfloat16)  # type: ignore[arg-type]
    expected = torch.from_numpy(values).to(torch.bfloat16)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_patterns_choose_and_the_others_are_cast(whole: Path) -> None:
    out = whole.with_name("out.safetensors")
    report = shrink(whole, out, include=["*.weight"], exclude=["conv*"], least=1, others="bfloat16")
    found, before = load_file(out), load_file(whole)
    assert {name for name in found if found[name].dtype == torch.int8} == {"a.weight", "tiny.weight"}
    assert torch.equal(found["conv.weight"], before["conv.weight"].bfloat16())
    assert torch.equal(found["a.bias"], before["a.bias"].bfloat16()) and found["steps"].dtype == torch.int64
    reasons = {fate.name: fate.reason for fate in report.tensors}
    assert reasons["conv.weight"] == "it is not chosen" and reasons["a.weight"] == ""
    with pytest.raises(ArtifactError, match=r"'a\.wight' fits no tensor[\s\S]*did you mean 'a\.weight'"):
        shrink(whole, whole.with_name("other.safetensors"), include=["a.wight"])


def test_shards_are_written_as_hugging_face_reads_them(sharded: Path) -> None:
    out, back = sharded.with_name("out"), sharded.with_name("back")
    shrink(sharded, out, shard_size=5000)
    index = json.loads((out / INDEX).read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    held = {name: file for file in files for name in load_file(out / file)}
    assert index["weight_map"] == held and len(files) > 1
    tensors = [tensor for file in files for tensor in load_file(out / file).values()]
    assert index["metadata"]["total_size"] == sum(one.numel() * one.element_size() for one in tensors)
    assert held["a.weight"] == held["a.weight_scale"]
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "small"
    group = config["quantization_config"]["config_groups"]["group_0"]
    assert (group["targets"], group["weights"]["strategy"]) == (["a", "conv"], "channel")
    assert group["format"] == config["quantization_config"]["format"] == "int-quantized"
    assert not (out / "pytorch_model.bin").exists()
    restore(out, back)
    assert json.loads((back / "config.json").read_text()) == {"model_type": "small"}
    assert set(load_file(back / "model.safetensors")) == set(held) - {"a.weight_scale", "conv.weight_scale"}
    with pytest.raises(ArtifactError, match="quantized already"):
        shrink(out, sharded.with_name("again"))


def test_the_same_checkpoint_gives_the_same_bytes(sharded: Path) -> None:
    for name in ("one", "two"):
        shrink(sharded, sharded.with_name(name), shard_size=5000)
    one, two = ({path.name: path.read_bytes() for path in sharded.with_name(name).iterdir()} for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_named_and_nothing_is_left(tmp_path: Path, wrong: float) -> None:
    tensors = net()
    tensors["conv.weight"][5, 1, 2, 2] = wrong
    save_file(tensors, tmp_path / "in.safetensors")
    for target in ("out.safetensors", "out"):
        with pytest.raises(ArtifactError, match=r"'conv\.weight' holds NaN or infinity in row 5"):
            shrink(tmp_path / "in.safetensors", tmp_path / target)
    assert os.listdir(tmp_path) == ["in.safetensors"]
    shrink(tmp_path / "in.safetensors", tmp_path / "out.safetensors", exclude=["conv.weight"])


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    save_file({"a": net()["a.weight"] * 1e6, "b": torch.ones(3)}, tmp_path / "in.safetensors")
    with pytest.raises(ArtifactError, match="'a' holds numbers that are too large for F16"):
        shrink(tmp_path / "in.safetensors", tmp_path / "out.safetensors", exclude=["a"], others="float16")
    shrink(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(ArtifactError, match="'a' holds numbers that are too large for F16"):
        restore(tmp_path / "out.safetensors", tmp_path / "back.safetensors", dtype="float16")


def test_nothing_is_written_over(whole: Path, sharded: Path) -> None:
    before = whole.read_bytes()
    for source, target in ((whole, whole), (sharded, sharded), (sharded, whole), (whole, sharded)):
        with pytest.raises(ArtifactError, match="there is something already"):
            shrink(source, target)
    assert whole.read_bytes() == before
    with pytest.raises(ArtifactError, match="one file has no shards"):
        shrink(whole, whole.with_name("out.safetensors"), shard_size=10)
    with pytest.raises(ArtifactError, match="no 8-bit integers"):
        restore(whole, whole.with_name("out.safetensors"))


def test_a_full_disk_leaves_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    for target in ("out.safetensors", "out"):
        with pytest.raises(ArtifactError, match=r"No space left on device\n.*free space"):
            shrink(whole, whole.with_name(target))
    assert os.listdir(whole.parent) == [whole.name]


def test_who_is_interrupted_leaves_nothing(whole: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for target in ("out.safetensors", "out"):
        with pytest.raises(KeyboardInterrupt):
            shrink(whole, whole.with_name(target), watch=interrupt)
    assert os.listdir(whole.parent) == [whole.name]


def test_who_is_killed_leaves_no_target(whole: Path) -> None:
    code = (
        "import os, signal, sys\nfrom compress_core.checkpoints import shrink\n"
        "shrink(sys.argv[1], sys.argv[2], watch=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))"
    )
    target = whole.with_name("out.safetensors")
    assert subprocess.run([sys.executable, "-c", code, whole, target], check=False).returncode == -9
    assert not target.exists()
    shrink(whole, target)
    assert "a.weight_scale" in load_file(target)


def test_what_is_told_adds_up(whole: Path) -> None:
    told: list[tuple[int, int]] = []
    report = shrink(whole, whole.with_name("out.safetensors"), watch=lambda done, total: told.append((done, total)))
    (total,) = {total for _, total in told}
    assert sum(done for done, _ in told) == total
    assert 0 < report.bytes_after - total < 2000


def header(content: object, data: int = 0) -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(shape: list[object], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty": (b"", "has 0 bytes"),
    "a length beyond the file": ((1 << 62).to_bytes(8, "little") + b"{}", "header is said to have"),
    "no JSON": ((4).to_bytes(8, "little") + b"\xff\xfe{}", "header is damaged"),
    "a list": (header([]), "no list of tensors"),
    "nested without end": ((20000).to_bytes(8, "little") + b"[" * 20000, "header is damaged"),
    "no tensor": (header({}), "holds no tensor"),
    "an unknown dtype": (header({"a": entry([1], 0, 4, "F33")}, 4), "'a' has no known dtype"),
    "a negative axis": (header({"a": entry([-1, -1], 0, 4)}, 4), "'a' has no known dtype, no shape"),
    "a shape beyond its bytes": (header({"a": entry([1 << 40, 1 << 40], 0, 4)}, 4), "and has 4 bytes"),
    "an axis beyond every disk": (header({"a": entry([10**400, 0], 0, 0)}), "no shape"),
    "too many axes": (header({"a": entry([1] * 1000, 0, 4)}, 4), "no shape"),
    "overlapping": (header({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 4), "do not begin where"),
    "cut off": (header({"a": entry([4], 0, 16)}, 12), "instead of"),
    "longer than said": (header({"a": entry([4], 0, 16)}, 20), "instead of"),
    "a name twice": ((60).to_bytes(8, "little") + b'{"a":{},"a":{}}'.ljust(60), "stands twice"),
    "metadata that is no text": (header({"__metadata__": {"a": 1}}), "no text by name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_error(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    (tmp_path / "in.safetensors").write_bytes(content)
    for rewrite in (shrink, restore):
        with pytest.raises(ArtifactError, match=words) as found:
            rewrite(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
        assert found.value.mend and "in.safetensors" in found.value.where
    assert os.listdir(tmp_path) == ["in.safetensors"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "index is damaged"),
        ('{"weight_map": []}', "index is damaged"),
        ('{"weight_map": {"a": "../net.safetensors"}}', "outside the folder"),
        ('{"weight_map": {"a": ["b"]}}', "index is damaged"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "cannot be read"),
        ('{"weight_map": {"b": "model-00001-of-00002.safetensors"}}', "differ in 'a.weight'"),
    ],
)
def test_a_damaged_index_is_one_error(sharded: Path, content: str, words: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(ArtifactError, match=words):
        shrink(sharded, sharded.with_name("out"))
    assert not sharded.with_name("out").exists()


@pytest.mark.parametrize("folder", ["nothing", "two", "artifact"])
def test_a_folder_that_leaves_open_what_is_meant_is_refused(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    names = {"nothing": ["a.txt"], "two": ["a.safetensors", "b.safetensors"], "artifact": ["manifest.json"]}[folder]
    for name in names:
        (place / name).touch()
    words = {"nothing": "no file that ends", "two": "several: a", "artifact": "artifact of a step"}[folder]
    with pytest.raises(ArtifactError, match=words):
        shrink(place, tmp_path / "out")


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"a_scale": torch.ones(3)}, r"shape \[3\], which does not fit"),
        ({"a_scale": torch.ones(4, 1), "a_zero_point": torch.zeros(4, 1)}, "has zero points"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, beside: dict[str, torch.Tensor], words: str) -> None:
    save_file({"a": torch.ones(4, 6, dtype=torch.int8), **beside}, tmp_path / "in.safetensors")
    with pytest.raises(ArtifactError, match=words):
        restore(tmp_path / "in.safetensors", tmp_path / "out.safetensors")


def test_the_commands_rewrite_and_restore(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.parent)
    found = call("compress", "shrink", whole.name, "out", "--exclude", "conv*", "--shard-size", "0.001", "--json")
    assert found.status == 0, found.err
    report = json.loads(found.out)
    assert {fate["name"] for fate in report["tensors"] if fate["after"] == "I8"} == {"a.weight"}
    printed = call("compress", "restore", "out", "back.safetensors", "--dtype", "bfloat16")
    assert printed.out.startswith("1 of 7 tensors rewritten: ")
    assert load_file("back.safetensors")["a.weight"].dtype == torch.bfloat16
    refused = call("compress", "shrink", whole.name, "out")
    assert refused.status == 2 and "to mend it: name a new file or folder" in refused.err


@pytest.mark.slow
def test_memory_stays_far_below_one_tensor(tmp_path: Path) -> None:
    """300 MB, in one tensor whose rows are longer than a piece, grow a process by less than 64 MB."""
    source = tmp_path / "in.safetensors"
    shape = [150, 500_000]
    with source.open("wb") as file:
        file.write(header({"a": entry([*shape], 0, 300_000_000)}))
        file.truncate(file.tell() + 300_000_000)
    code = """
import re, sys
from compress_core.checkpoints import shrink
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
shrink(sys.argv[1], sys.argv[2])
print("torch" in sys.modules, peak() - before)
"""
    command = [sys.executable, "-c", code, source, tmp_path / "out.safetensors"]
    torch_there, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert torch_there == "False" and 0 < int(grown) < 64 << 10
    assert (tmp_path / "out.safetensors").stat().st_size > 75_000_000
