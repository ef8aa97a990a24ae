"""A transformer that classifies sentences (SST-2) in int8, against onnxruntime's dynamic quantizer and fp32.

The zoo's TextTransformer (two layers, width 320, 32 words) is trained from scratch on the 6,920 sentences, and then
quantized without training: embedding, the projections of attention and the feed-forward layers hold int8, and the
matrix products compute in it with ranges calibrated on 512 training sentences. The peer is onnxruntime's
quantize_dynamic (per channel, int8 weights) of the fp32 file, which finds the ranges anew in every call. The opponent
in speed is the faster of the two fp32 files, in onnxruntime and in OpenVINO with float32; one thread, batches of 16,
the files by turns.

Accuracy is paired with that of the fp32 file on the 1,821 test sentences, which are few: the interval says what they
can resolve. A network from scratch on so few sentences reaches some 80 %; the comparison is within it.

Time: 4 minutes on one core, with one seed; --full trains 3 seeds as long and gives their mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks._files import Call
    from compress_core.data import Splits
    from compress_core.run import Run

LENGTH, VOCABULARY, WIDTH, LAYERS = 32, 8_000, 320, 2
EPOCHS = 3
BATCH = 16
SPEED = 3.0
PEER = "onnxruntime's dynamic quantizer"
RUNTIMES = ("onnxruntime", "OpenVINO")


def run(bench: Bench) -> Iterator[Figure]:
    """Train, quantize, and compare the files."""
    import torch

    from benchmarks import _files

    seeds = bench.seeds if bench.full else bench.seeds[:1]
    found: dict[str, list[Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            world = _run(bench, seed)
            files = _exported(_trained(world), world, Path(folder) / str(seed))
            for name, call in files.items():
                found.setdefault(name, []).append(_files.right(call, world.splits, world.task))
        hits = {name: torch.cat(parts) for name, parts in found.items()}
        yield from _figures(files, hits, world, seeds)


def _figures(files: dict[str, Call], hits: dict[str, Tensor], world: Run, seeds: tuple[int, ...]) -> Iterator[Figure]:
    from benchmarks import _files

    fp32 = [name for name in files if name.startswith("fp32")]
    timing = _files.timed(files, world.splits, world.task, BATCH, fp32)
    best = min(fp32, key=lambda name: timing.time(name).value)
    ours = min((name for name in files if name.startswith("int8")), key=lambda name: timing.time(name).value)
    disturbed = "; disturbed" if timing.disturbed else ""
    lost, theirs = (_files.difference(hits[best], hits[name]) for name in (ours, PEER))
    resolved = "" if lost[2] <= 0.5 or lost[1] > 0.5 else "; the test sentences cannot resolve 0.5 points"
    yield Figure(
        "accuracy lost without training",
        lost[0],
        "points",
        False,
        PEER,
        theirs[0],
        goal=0.5,
        low=lost[1],
        high=lost[2],
        seeds=seeds,
        note=f"fp32 has {100 * float(hits[best].mean()):.2f} %; paired 95 % interval{resolved}",
    )
    speed, other = timing.speedup(ours, best), timing.speedup(PEER, best)
    yield Figure(
        f"speed-up by int8, batch {BATCH}",
        speed.value,
        "times",
        True,
        PEER,
        other.value,
        goal=SPEED,
        low=speed.low,
        high=speed.high,
        note="over the faster fp32 file; "
        + ", ".join(f"{name} {1000 * timing.time(name).value:.3g} ms" for name in files)
        + disturbed,
    )
    beside = timing.speedup(ours, PEER)
    yield Figure(
        f"speed beside the dynamic quantizer, batch {BATCH}",
        beside.value,
        "times",
        True,
        PEER,
        1.0,
        goal=1.0,
        low=beside.low,
        high=beside.high,
        note="times as fast" + disturbed,
    )


def _run(bench: Bench, seed: int) -> Run:
    from compress_data import Parquet
    from compress_tasks import Classification

    from compress_core.run import Run

    source = Parquet(folder=str(bench.data("sst2")), text="sentence", vocabulary=VOCABULARY, length=LENGTH)
    task = Classification(input=("ids", "mask"))
    splits: Splits = source.splits(seed)
    return Run(splits=splits, task=task, seed=seed, precision="bfloat16", printer=bench.say, teller=bench.say)


def _trained(world: Run) -> nn.Module:
    import torch
    from compress_tune import Tune
    from compress_zoo import TextTransformer

    torch.manual_seed(world.seed)
    model = TextTransformer(vocabulary=VOCABULARY, length=LENGTH, width=WIDTH, layers=LAYERS)
    tune = Tune(
        epochs=EPOCHS, batch_size=64, optimizer="adamw", learning_rate=5e-4, schedule="cosine", warmup=0.1, keep="best"
    )
    return world.train(model, [tune]).cpu().eval()


def _exported(model: nn.Module, world: Run, folder: Path) -> dict[str, Call]:
    """The files, opened: fp32 and int8 in both runtimes, and the peer's."""
    from copy import deepcopy

    from compress_export import Onnx, OpenVino
    from compress_quantize import Quantize

    from benchmarks import _files

    small = Quantize().apply(deepcopy(model), world)
    found = {}
    for kind, network in (("fp32", model), ("int8", small)):
        for runtime, exporter in zip(RUNTIMES, (Onnx(), OpenVino()), strict=True):
            place = folder / kind / runtime
            exporter.export(network, place, world.example)
            found[f"{kind} {runtime}"] = exporter.load(place, 1)
    (folder / "peer").mkdir()
    _files.onnxruntime_dynamic(folder / "fp32" / RUNTIMES[0] / "model.onnx", folder / "peer" / "model.onnx")
    found[PEER] = Onnx().load(folder / "peer", 1)
    return found
