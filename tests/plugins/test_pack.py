"""The packed file: the exact artifact back, in few bytes, without torch, and alike on every machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from math import log2, prod
from pathlib import Path

import compress_clip
import compress_factorize
import compress_prune
import compress_quantize
import numpy as np
import pytest
import torch
from compress_pack.decoding import Stored, decode, unpack
from compress_pack.encoding import pack, read_tensors, write_tensors
from compress_pack.exporter import FILE, Packed
from compress_pack.positions import code_positions
from compress_pack.streams import Reader, Writer
from compress_pack.tensors import ITEM_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save, trusting
from compress_core.factory import build_model
from compress_core.measure import shipped_bytes
from compress_core.parts import Technique
from compress_core.stage import export_model
from compress_core.testing import factory_of
from compress_core.unpacking import unpack_file
from tests.support import make, make_run

WRITTEN = Path(__file__).with_name("every_code.cpk")
MANIFEST_OF_NOTHING = {"format": 1, "kind": "model", "factory": "a:b", "params": {}, "edits": [], "ties": {}}


def floats(values: np.ndarray, name: str = "weight") -> Stored:
    """A float32 tensor."""
    return Stored(name, "F32", values.shape, values.astype(np.float32).view(np.uint32).ravel())


def size_of(*tensors: Stored) -> int:
    """The bytes beyond those of a file without tensors; the tensors are checked to come back."""
    packed = pack(MANIFEST_OF_NOTHING, tensors)
    found = unpack(packed)[1]
    assert [(one.name, one.dtype, one.shape) for one in found] == [(one.name, one.dtype, one.shape) for one in tensors]
    for one, other in zip(found, tensors, strict=True):
        assert np.array_equal(one.words, other.words)
    return len(packed) - len(pack(MANIFEST_OF_NOTHING, []))


def entropy(*shares: float) -> float:
    """Of a distribution, in bits."""
    return -sum(share * log2(share) for share in shares if share)


TECHNIQUES: dict[str, tuple[str, Callable[[], Technique]]] = {
    "clipped": ("mlp", lambda: compress_clip.Clip(share=0.8)),
    "channels pruned": ("conv", lambda: compress_prune.Prune(granularity="channel", amount=0.5)),
    "weights pruned": ("lstm", lambda: compress_prune.Prune(amount=0.9)),
    "factorized": ("conv", lambda: compress_factorize.Factorize(**compress_factorize.Factorize.example)),
    "int8": ("conv", compress_quantize.Quantize),
    "transformer int8": ("transformer", compress_quantize.Quantize),
}


@lru_cache
def result(name: str) -> nn.Module:
    net, technique = TECHNIQUES[name]
    return apply_techniques(make(net), [technique()], make_run()).eval()


def exported(model: nn.Module, folder: Path) -> Path:
    Packed().export(model, folder, make_run().example)
    return folder / FILE


@pytest.mark.parametrize("name", TECHNIQUES)
def test_what_techniques_make_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, factory = result(name), factory_of(make(TECHNIQUES[name][0]))
    save(model, tmp_path / "saved", factory=factory)
    unpack_file(exported(model, tmp_path / "packed"), tmp_path / "unpacked")
    assert load(tmp_path / "unpacked", factory=factory) is not None
    for file in sorted((tmp_path / "saved").iterdir()):
        assert (tmp_path / "unpacked" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_opened_file_computes_what_the_network_computes(name: str, tmp_path: Path) -> None:
    model = result(name)
    arguments, keywords = make_run().example
    with trusting([factory_of(make(TECHNIQUES[name][0]))]):
        exported(model, tmp_path)
        found = Packed().load(tmp_path, 1)(*arguments, **keywords)
    with torch.no_grad():
        assert torch.equal(found, model(*arguments, **keywords))
    assert not found.requires_grad


@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_file_is_smaller_than_the_artifact_that_it_holds(name: str, tmp_path: Path) -> None:
    model = result(name)
    save(model, tmp_path / "saved", factory=factory_of(make(TECHNIQUES[name][0])))
    file = exported(model, tmp_path / "packed")
    assert file.stat().st_size < 0.9 * shipped_bytes(tmp_path / "saved")


def test_the_same_network_gives_the_same_bytes_also_in_another_process(tmp_path: Path) -> None:
    model = result("int8")
    first, second = exported(model, tmp_path / "a").read_bytes(), exported(model, tmp_path / "b").read_bytes()
    assert first == second
    save(model, tmp_path / "saved", factory=factory_of(make("conv")))
    program = (
        "import json, sys; from pathlib import Path; from compress_pack.encoding import pack, read_tensors\n"
        "folder = Path(sys.argv[1]); manifest = json.loads((folder / 'manifest.json').read_text())\n"
        "Path(sys.argv[2]).write_bytes(pack(manifest, read_tensors((folder / 'model.safetensors').read_bytes())))\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "saved", tmp_path / "elsewhere"], check=True)
    assert (tmp_path / "elsewhere").read_bytes() == first


def test_export_of_the_product_writes_reads_and_runs_the_file_of_a_users_own_network(tmp_path: Path) -> None:
    runtime = export_model(make("conv"), Packed(), tmp_path / "out", make_run(), {})
    assert shipped_bytes(tmp_path / "out") == (tmp_path / "out" / FILE).stat().st_size
    arguments, keywords = make_run().example
    with torch.no_grad():
        assert torch.equal(runtime(*arguments, **keywords), make("conv").eval()(*arguments, **keywords))


# ---- decoding without torch


def test_numpy_and_constriction_are_enough_to_decode(tmp_path: Path) -> None:
    file = exported(result("clipped"), tmp_path)
    program = (
        "import sys\n"
        "for name in ('torch', 'pydantic', 'safetensors', 'compress_core', 'pluggy'): sys.modules[name] = None\n"
        "from compress_pack.decoding import decode\n"
        "from pathlib import Path\n"
        "tensors, manifest = decode(Path(sys.argv[1]).read_bytes())\n"
        "print(manifest['factory'], *(f'{name}:{array.dtype}:{array.sum()!r}' for name, array in tensors.items()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, file], text=True, capture_output=True, check=True)
    factory, *sums = done.stdout.split()
    assert factory == factory_of(make("mlp"))
    wanted = {name: tensor.numpy() for name, tensor in result("clipped").state_dict().items()}
    assert sorted(sums) == sorted(f"{name}:float32:{array.sum()!r}" for name, array in wanted.items())


def test_number_formats_that_numpy_lacks_come_as_their_bits() -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)
    tensors, _ = decode(pack(MANIFEST_OF_NOTHING, [Stored("w", "BF16", (2,), bits)]))
    assert tensors["w"].dtype == np.uint16
    assert tensors["w"].tolist() == [0x3F80, 0xC000]


# ---- exactness


SHAPES = st.one_of(
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.tuples(st.integers(1, 3), st.integers(500, 1500)),
    st.tuples(st.integers(100, 300), st.integers(1, 3)),
)


@st.composite
def tensors_of_any_kind(draw: st.DrawFn) -> Stored:
    """Random bits, few different numbers, or mostly zeros, in any number format."""
    dtype = draw(st.sampled_from(sorted(ITEM_SIZES)))
    shape = draw(SHAPES)
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    width = ITEM_SIZES[dtype]
    words = random.integers(0, 2 ** (8 * width), prod(shape), dtype=f"u{width}", endpoint=False)
    if draw(st.booleans()) and words.size:
        words = words[random.integers(0, min(len(words), draw(st.integers(1, 40))), len(words))]
    keep = draw(st.sampled_from([1.0, 0.5, 0.05, 0.0]))
    words = np.where(random.random(len(words)) < keep, words, 0).astype(words.dtype)
    return Stored(draw(st.text(max_size=5)), dtype, shape, words)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tensors_of_any_kind(), tensors_of_any_kind())
def test_tensors_of_any_format_and_shape_come_back_bit_for_bit(one: Stored, other: Stored) -> None:
    size_of(one, Stored(f"{one.name}'", other.dtype, other.shape, other.words))


def test_negative_zeros_infinities_and_the_payload_of_nans_survive() -> None:
    words = np.array([0x80000000, 0, 0x7FC00001, 0xFFC12345, 0x7F800000, 1, 0x80000001] * 30, np.uint32)
    size_of(Stored("w", "F32", (7, 30), words))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_files_of_safetensors_are_written_again_byte_for_byte(dtype: str) -> None:
    from safetensors.torch import save as to_bytes

    data = to_bytes({"b.ö": torch.arange(6).to(getattr(torch, dtype)), "a": torch.ones(2, 3), "c": torch.ones(())})
    assert write_tensors(read_tensors(data)) == data


def every_code() -> list[Stored]:
    """Tensors that are coded in each of the ways, from numpy's generator that never changes."""
    random = np.random.RandomState(0)
    mask = random.randint(0, 9, (40, 60)) == 0
    grid = np.where(mask, random.randint(-3, 4, (40, 60)), 0).astype(np.float32) * np.float32(0.375) + np.float32(0)
    table = np.array([0.31, -0.7, 1.3, 2.9], np.float32)[random.randint(0, 4, 300)]
    bits = random.randint(0x3C000000, 0x40000000, 400).astype(np.uint32)
    sizes = 1 + 7 * (np.arange(16 * 16) % 16)
    codes = (random.randint(-64, 65, (9, 16 * 16)) * sizes // 64).T.astype(np.int8)
    return [
        Stored("grid", "F32", (40, 60), grid.view(np.uint32).ravel()),
        Stored("picture", "F32", (60, 40), np.sort(grid.reshape(60, 40), axis=0).ravel().view(np.uint32)),
        Stored("table", "F32", (20, 15), table.view(np.uint32)),
        Stored("planes", "F32", (20, 20), np.where(random.randint(0, 3, 400) == 0, bits, 0).astype(np.uint32)),
        Stored("kernels", "I8", (16, 16, 3, 3), codes.view(np.uint8).ravel()),
        Stored("count", "I64", (), np.array([7], np.uint64)),
    ]


def test_a_file_that_was_written_elsewhere_is_read_alike() -> None:
    tensors = unpack(WRITTEN.read_bytes())[1]
    assert [tensor.name for tensor in tensors] == [tensor.name for tensor in every_code()]
    for found, wanted in zip(tensors, every_code(), strict=True):
        assert np.array_equal(found.words, wanted.words), found.name
    assert size_of(*every_code()) < 1.05 * len(WRITTEN.read_bytes())


# ---- sizes


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_ternary_codes_take_no_more_than_their_entropy_and_three_per_cent(share: float) -> None:
    random = np.random.default_rng(0)
    shape = (400, 1000)
    codes = random.choice([-1, 0, 1], p=[share / 2, 1 - share, share / 2], size=shape)
    bound = entropy(share / 2, share / 2, 1 - share) * prod(shape) / 8
    assert bound * 0.97 < size_of(floats(0.0371 * codes + 0.0)) < bound * 1.03 + 60


def test_matrices_with_dense_and_empty_rows_and_columns_take_less_than_independent_positions_would() -> None:
    random = np.random.default_rng(1)
    rates = np.minimum(0.02 * random.gamma(0.4, 2.5, (300, 1)) * random.gamma(0.4, 2.5, (1, 784)), 0.9)
    mask = random.random(rates.shape) < rates
    ideal = -np.log2(np.where(mask, rates, 1 - rates)).sum() / 8
    independent = entropy(mask.mean(), 1 - mask.mean()) * mask.size / 8
    writer = Writer()
    code_positions(writer, *mask.shape, mask)
    raw, coded = writer.parts()
    assert np.array_equal(code_positions(Reader(memoryview(raw), memoryview(coded)), *mask.shape, None), mask)
    assert ideal < len(coded) < 1.15 * ideal
    assert len(coded) < 0.75 * independent


def test_int8_codes_of_a_gaussian_take_their_entropy() -> None:
    random = np.random.default_rng(2)
    codes = np.clip(np.rint(random.normal(0, 20, 20_000)), -127, 127).astype(np.int8)
    bound = log2(20 * (2 * np.pi * np.e) ** 0.5) * len(codes) / 8
    assert bound * 0.98 < size_of(Stored("w", "I8", (100, 200), codes.view(np.uint8))) < bound * 1.02 + 40


def test_int8_convolutions_whose_channels_differ_in_size_take_less_than_the_entropy_of_all_codes() -> None:
    random = np.random.default_rng(5)
    scale = random.gamma(1, 12, (32, 1, 1, 1)) * random.gamma(1, 1, (1, 32, 1, 1))
    codes = np.clip(np.rint(random.laplace(0, 1, (32, 32, 3, 3)) * scale), -127, 127).astype(np.int8)
    counts = np.bincount(codes.ravel().view(np.uint8))
    of_all = entropy(*(counts / codes.size)) * codes.size / 8
    assert size_of(Stored("w", "I8", codes.shape, codes.view(np.uint8).ravel())) < 0.96 * of_all


def test_shared_weights_are_stored_as_a_table_and_places() -> None:
    random = np.random.default_rng(3)
    table = random.normal(size=16)
    values = table[random.integers(0, 16, 10_000)].reshape(100, 100)
    assert size_of(floats(values)) < 16 * 4 + 10_000 * 4 / 8 + 60


def test_trained_floats_lose_the_entropy_of_their_exponents_only() -> None:
    random = np.random.default_rng(4)
    values = random.normal(0, 0.05, (100, 500))
    exponents = np.bincount(np.frexp(values.astype(np.float32))[1].ravel() + 200)
    share = exponents[exponents > 0] / values.size
    bound = (24 + entropy(*share)) * values.size / 8
    assert size_of(floats(values)) < bound * 1.005 + 80


def test_a_small_network_pays_less_than_a_hundred_and_ten_bytes_for_its_architecture() -> None:
    model = build_model("compress_zoo:LeNet300100", {})
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    from compress_pack.artifacts import packed_artifact

    assert len(packed_artifact(model, "compress_zoo:LeNet300100", {})) < 110
