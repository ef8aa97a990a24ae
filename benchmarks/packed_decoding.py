"""Packed files: how small they are beside xz, and how fast they are decoded.

Three networks: LeNet-300-100 as `prune` leaves it, with 2.5 % of its weights in float32; the same with its weights
rounded to at most four steps on either side of zero, and its biases to 255 (the rounding is that of this script, and
nothing is trained after it); ResNet-20 with the published CIFAR-10 weights as `quantize` makes it of them, in int8. All
bytes of the file count, the architecture too. Beside them stand the two files of the same artifact, each packed by xz
at its strongest.

Decoding: of the file in memory into arrays, with numpy and constriction; the best of several times, in processor time
of the one thread, so that other programs do not count. A weight counts as the 4 bytes of its float32, whatever holds
it. Goal: 20 MB a second.

Time: 4 minutes on one core; --full takes the same. Needs `mnist` and `cifar10` in COMPRESS_DATA, `resnet20-cifar10` in
COMPRESS_MODELS.
"""

from __future__ import annotations

import json
import lzma
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import nn

    from compress_core.data import Splits

AMOUNT = 0.975
LEVELS, BIAS_LEVELS = 4, 127
DENSE_EPOCHS, SPARSE_EPOCHS = 4, 8
CALIBRATION = 512
REPEATS = 15
MEGABYTE = 1_000_000


def run(bench: Bench) -> Iterator[Figure]:
    """Bytes and speed of each network."""
    from benchmarks._lenets import accuracy, mnist

    splits = mnist(bench)
    lenet = _sparse_lenet(splits)
    yield from _figures("LeNet-300-100, sparse", lenet, "compress_zoo:LeNet300100", _tested(accuracy(lenet, splits)))
    rounded = _rounded(lenet)
    note = _tested(accuracy(rounded, splits))
    yield from _figures("LeNet-300-100, sparse and rounded", rounded, "compress_zoo:LeNet300100", note)
    bench.say("ResNet-20")
    yield from _figures("ResNet-20, int8", _int8_resnet(bench), "compress_zoo:ResNet20", "")


def _tested(percent: float) -> str:
    return f"{percent:.2f} % of the test images"


def _figures(name: str, model: nn.Module, factory: str, note: str) -> Iterator[Figure]:
    from compress_pack.encoding import pack, read_tensors

    from compress_core.artifact import TENSORS, save
    from compress_core.files import MANIFEST

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        save(model, place, factory=factory)
        files = [(place / file).read_bytes() for file in (MANIFEST, TENSORS)]
    tensors = read_tensors(files[1])
    weights = sum(tensor.words.size for tensor in tensors if tensor.dtype in {"F32", "I8"})
    packed = pack(json.loads(files[0]), tensors)
    squeezed = sum(len(lzma.compress(file, preset=9 | lzma.PRESET_EXTREME)) for file in files)
    yield Figure(
        f"{name}: the packed file",
        len(packed),
        "bytes",
        False,
        "xz -9e of the artifact's files",
        squeezed,
        note=f"{4 * weights / len(packed):.1f} times smaller than float32; {note}".rstrip("; "),
    )
    yield Figure(
        f"{name}: decoding",
        4 * weights / MEGABYTE / _seconds(packed),
        "MB/s",
        True,
        "none",
        goal=20.0,
        note=f"{weights:,} weights of 4 bytes; best of {REPEATS} in processor time",
    )


def _seconds(packed: bytes) -> float:
    from compress_pack.decoding import decode

    found = []
    for _ in range(REPEATS):
        start = process_time()
        decode(packed)
        found.append(process_time() - start)
    return min(found)


def _sparse_lenet(splits: Splits) -> nn.Module:
    from compress_prune import Prune
    from compress_tune import Tune

    from benchmarks._lenets import fresh, step

    dense = step(
        fresh("LeNet300100", 0), [Tune(epochs=DENSE_EPOCHS, batch_size=128, schedule="cosine")], splits, seed=0
    )
    prune = Prune(amount=AMOUNT, allocation="global", end=0.6)
    tune = Tune(epochs=SPARSE_EPOCHS, batch_size=128, schedule="cosine", learning_rate=3e-3)
    return step(dense, [prune, tune], splits, seed=0)


def _rounded(model: nn.Module) -> nn.Module:
    """Weights on a grid of 0.7 times their mean size, those that are left at least one step from zero."""
    import torch

    rounded = deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            alive = parameter != 0
            is_bias = parameter.dim() == 1
            levels = BIAS_LEVELS if is_bias else LEVELS
            scale = parameter.abs().max() / levels if is_bias else 0.7 * parameter[alive].abs().mean()
            steps = (parameter / scale).round().clamp(-levels, levels)
            if not is_bias:
                steps = torch.where(alive & (steps == 0), parameter.sign(), steps)
            parameter.copy_((steps + 0.0) * scale)
    return rounded


def _int8_resnet(bench: Bench) -> nn.Module:
    import compress_zoo
    from compress_quantize import Quantize
    from compress_tasks import Classification
    from safetensors.torch import load_file

    from benchmarks._pictures import cifar10
    from compress_core.applying import apply_techniques
    from compress_core.run import Run

    model = compress_zoo.ResNet20()
    model.load_state_dict(load_file(bench.weights("resnet20-cifar10")))
    run = Run(splits=cifar10(bench, 0, CALIBRATION, CALIBRATION), task=Classification())
    return apply_techniques(model, [Quantize()], run)
