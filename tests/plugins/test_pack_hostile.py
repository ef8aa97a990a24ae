"""Damaged and hostile packed files: the exact model or one clear error, and little memory."""

from __future__ import annotations

import tracemalloc
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress_pack.decoding import LEAST_RESTORED, MAGIC, DamagedError, Stored, unpack
from compress_pack.encoding import _file, _json, pack
from compress_pack.exporter import FILE, Packed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress_core.artifact import save, trusting
from compress_core.errors import ArtifactError, CompressError, ModelError
from compress_core.testing import factory_of
from compress_core.unpacking import unpack_file
from tests.doors import call
from tests.support import MLP, make, make_run

MANIFEST = {"format": 1, "kind": "model", "factory": "a:b", "params": {}, "edits": [], "ties": {}}
MEMORY = 64 << 20


@lru_cache
def tensors() -> tuple[Stored, ...]:
    """One tensor for each of the codes: positions, grids, tables, planes, codes of neighbours."""
    random = np.random.default_rng(0)
    grid = random.integers(-3, 4, (40, 60)) * (random.random((40, 60)) < 0.1) * 0.125 + 0.0
    table = np.array([-0.31, 0.7, 1.3, 2.9])[random.integers(0, 4, (20, 30))]
    arrays = {"grid": grid, "table": table, "planes": random.normal(size=(10, 12)), "sparse": random.normal(size=900)}
    arrays["sparse"][::2] = 0
    stored = [
        Stored(name, "F32", array.shape, array.astype(np.float32).view(np.uint32).ravel())
        for name, array in arrays.items()
    ]
    codes = random.integers(0, 256, 500).astype(np.uint8)
    return (*stored, Stored("codes", "I8", (50, 10), codes), Stored("count", "I64", (), np.array([7], np.uint64)))


@lru_cache
def packed() -> bytes:
    return pack(MANIFEST, tensors())


def with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def read(data: bytes) -> list[Stored] | None:
    """The tensors, or None if the file is refused."""
    try:
        return unpack(data)[1]
    except DamagedError:
        return None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_file_with_flipped_bits_is_refused(data: st.DataObject) -> None:
    damaged = bytearray(packed())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4, unique=True)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    assert read(bytes(damaged)) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
@example(0)
@example(3)
@example(4)
@example(8)
def test_a_file_that_is_cut_off_is_refused(length: int) -> None:
    assert read(packed()[: length % len(packed())]) is None


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_a_file_made_to_pass_the_checksum_gives_tensors_of_the_declared_shapes_or_is_refused(
    data: st.DataObject,
) -> None:
    body = bytearray(packed()[:-4])
    for place in data.draw(st.lists(st.integers(4, len(body) - 1), min_size=1, max_size=6, unique=True)):
        body[place] = data.draw(st.integers(0, 255))
    if (found := read(with_checksum(bytes(body)))) is not None:
        for tensor in found:
            assert tensor.array.shape == tensor.shape


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_random_codes_behind_a_right_header_give_tensors_of_the_declared_shapes_or_are_refused(
    data: st.DataObject,
) -> None:
    shapes = data.draw(st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=3))
    dtypes = [data.draw(st.sampled_from(["F32", "I8", "BF16", "I64"])) for _ in shapes]
    listed = [[str(number), dtype, shape] for number, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=True))]
    size = {"F32": 4, "I8": 1, "BF16": 2, "I64": 8}
    total = sum(size[dtype] * int(np.prod(shape, dtype=np.int64)) for dtype, shape in zip(dtypes, shapes, strict=True))
    raw, coded = data.draw(st.binary(max_size=400)), data.draw(st.binary(max_size=400))
    if (found := read(_file(total, _json([MANIFEST, listed]), raw, coded))) is not None:
        assert [tensor.array.shape for tensor in found] == [tuple(shape) for shape in shapes]


def crafted(listed: Any, restored: int, manifest: Any = MANIFEST, *, coded: bytes = b"") -> bytes:
    """A file whose checksum is right and whose header says what it likes."""
    data = _file(0, _json([manifest, listed]), b"", coded)
    body = data[:-4]
    number = bytearray()
    while restored > 127:
        number.append(restored & 127 | 128)
        restored >>= 7
    return with_checksum(body[:4] + bytes([*number, restored]) + body[5:])


HUGE = 2**40
HOSTILE: dict[str, bytes] = {
    "a huge shape": crafted([["w", "F32", [HUGE]]], 4 * HUGE),
    "a huge shape that is not declared": crafted([["w", "F32", [HUGE]]], 4),
    "a product that would overflow": crafted([["w", "U8", [2**32, 2**32]]], 0),
    "a huge shape without any number": crafted([["w", "U8", [2**61, 2**61, 0]]], 0),
    "a negative shape": crafted([["w", "F32", [-1, -4]]], 16),
    "a shape of truth values": crafted([["w", "F32", [True]]], 4),
    "a shape that is no list": crafted([["w", "F32", 4]], 16),
    "a name that is no text": crafted([[1, "F32", [4]]], 16),
    "an unknown number format": crafted([["w", "F31", [4]]], 16),
    "two tensors of one name": crafted([["w", "U8", [1]], ["w", "U8", [1]]], 2),
    "sizes that do not add up": crafted([["w", "U8", [5]]], 4),
    "a manifest that is a list": crafted([], 0, manifest=[]),
    "a list of tensors that is a number": crafted(7, 0),
    "deep nesting": _file(0, b"[" * 500_000 + b"]" * 500_000, b"", b""),
    "a header that is no JSON": _file(0, b"\xff\xfe", b"", b""),
    "a number of too many digits": _file(0, b"[" + b"9" * 100_000 + b",[]]", b"", b""),
    "a header that inflates to very much": with_checksum(
        MAGIC + bytes([1, 0]) + b"\x80\x80\x80\x80\x10" + bytes([5, 0, 0]) + b"\0\0\0\0\0"
    ),
    "another version": with_checksum(MAGIC + bytes([9]) + packed()[4:-4]),
    "lengths beyond the file": with_checksum(MAGIC + bytes([1, 0, 0, 127, 0, 0])),
    "a length without an end": with_checksum(MAGIC + bytes([1]) + b"\xff" * 40),
    "nothing": b"",
    "only the magic": MAGIC,
    "something else": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match=r"\w+ \w+"):
            unpack(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["U8", "F32", "I64"])
@pytest.mark.parametrize("coded", [b"", b"\xff" * 64, b"\x55\x12\xe0" * 40])
def test_the_largest_tensor_that_a_short_file_may_declare_takes_little_memory(dtype: str, coded: bytes) -> None:
    size = {"U8": 1, "F32": 4, "I64": 8}[dtype]
    data = crafted([["w", dtype, [2048, LEAST_RESTORED // 2048 // size]]], LEAST_RESTORED, coded=coded)
    tracemalloc.start()
    try:
        read(data)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_a_large_tensor_of_zeros_can_be_packed_though_a_short_file_may_not_declare_one() -> None:
    zeros = Stored("w", "F32", (4 << 20,), np.zeros(4 << 20, np.uint32))
    data = pack(MANIFEST, [zeros])
    assert np.array_equal(unpack(data)[1][0].words, zeros.words)
    assert len(data) < 5000


# ---- through the product


def saved(tmp_path: Path) -> Path:
    Packed().export(make("mlp"), tmp_path / "packed", make_run().example)
    return tmp_path / "packed" / FILE


def test_the_command_gives_the_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path)
    save(make("mlp"), tmp_path / "saved", factory=factory_of(make("mlp")))
    found = call("compress", "unpack", str(file), str(tmp_path / "unpacked"))
    assert found.status == 0, found.err
    for path in (tmp_path / "saved").iterdir():
        assert (tmp_path / "unpacked" / path.name).read_bytes() == path.read_bytes()


def test_the_command_tells_a_damaged_file_in_one_error(tmp_path: Path) -> None:
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    found = call("compress", "unpack", str(file), str(tmp_path / "unpacked"))
    assert found.status == 2
    assert "checksum differs" in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"PK\x03\x04", "no packed file"), (b"", "no packed file")]
)
def test_what_is_no_packed_file_is_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(ArtifactError, match=reason):
        unpack_file(tmp_path / "file", tmp_path / "out")


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    file = saved(tmp_path)
    with pytest.raises(ArtifactError, match="other files"):
        unpack_file(file, tmp_path / "packed")


def test_opening_a_file_runs_no_factory_that_nobody_trusts(tmp_path: Path) -> None:
    file = saved(tmp_path)
    with pytest.raises(ArtifactError, match="not trusted"):
        Packed().load(file.parent, 1)
    with trusting([factory_of(make("mlp"))]):
        assert callable(Packed().load(file.parent, 1))
    with pytest.raises(ArtifactError, match="not trusted"):
        Packed().load(file.parent, 1)


@pytest.mark.parametrize(
    "manifest",
    [
        {"format": 1, "kind": "data"},
        {"format": 2, "kind": "model"},
        {},
        {**MANIFEST, "factory": 3},
        {**MANIFEST, "masked": ["../../x"], "trains": {}, "provenance": {}},
        {**MANIFEST, "files": {"../../etc": {"bytes": 1, "sha256": "0"}}, "masked": [], "trains": {}},
        {**MANIFEST, "edits": 7, "masked": [], "trains": {}},
    ],
)
def test_a_hostile_manifest_gives_an_error_of_ours(manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(pack({}, []) if not manifest else crafted([], 0, manifest))
    with trusting(["a:b"]), pytest.raises(CompressError):
        Packed().load(tmp_path, 1)


def test_a_network_of_unknown_origin_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="factory") as caught:
        Packed().export(MLP(), tmp_path, make_run().example)
    assert "build_model" in caught.value.mend
