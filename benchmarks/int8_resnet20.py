"""ResNet-20 on CIFAR-10 in int8, against the quantizers of NNCF and onnxruntime; pruned and in int8, against fp32.

Three int8 networks are made of the published weights without training, each calibrated on the same 512 training
images: by compress, by NNCF 3 (for OpenVINO) and by onnxruntime's static quantizer (per channel, QDQ). All run in the
runtime for which the peer was made, one thread, by turns; accuracy is paired with that of the fp32 file on the 10,000
test images, which are a re-encoding on which the network as published has 81.0 %.

Then the published network is fine-tuned on 49,000 images; the same network with less in it is fine-tuned alike, with
that one for its teacher, and quantized: two of the three blocks at 32x32 go by ablation, and half of the inner
channels at 8x8 (l2, multiples of 16). Blocks at 32x32 go because int8 kernels compute 16 channels at once, which is
all that these have: they cost most of the time and a third of the multiplications. What was chosen was chosen on
speed alone, with weights that had not been trained. The opponent is the faster of the two dense fp32 files, in
onnxruntime and in OpenVINO with float32, at batch 64.

Time: 15 minutes on one core, with 4 epochs and one seed; --full takes 30 epochs, an hour and a half.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._resnets import fine_tuning, published, run_of, splits_anew
from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import nn

    from benchmarks._files import Call
    from compress_core.run import Run

VALIDATION = 1_000
EPOCHS, FULL_EPOCHS = 4, 30
RATE = 0.05
BLOCKS = 2
"""How many of the three blocks at 32x32 go."""
BATCH = 64
SPEED = 4.5
ONNX, OPENVINO = "onnxruntime", "OpenVINO"


def run(bench: Bench) -> Iterator[Figure]:
    """Quantize, prune and quantize, and compare the files."""
    from compress_distill import Distill

    seed, tune = bench.seeds[0], fine_tuning(FULL_EPOCHS if bench.full else EPOCHS, RATE)
    splits = splits_anew(bench, seed, None, VALIDATION)
    world = run_of(bench, seed, splits())
    with tempfile.TemporaryDirectory() as folder:
        yield from _quantizers(published(bench, 20), world, Path(folder), bench)
        bench.say("the dense network, fine-tuned")
        dense = run_of(bench, seed, splits()).train(published(bench, 20), [tune])
        bench.say("fewer blocks and channels, fine-tuned alike")
        small = run_of(bench, seed, splits(), teacher=dense)
        pruned = small.train(_pruned(published(bench, 20), small), [Distill(), tune])
        yield from _pruned_figures(dense, pruned, world, Path(folder), bench)


def _pruned(model: nn.Module, world: Run) -> nn.Module:
    from compress_prune import Prune

    share = (BLOCKS + 0.01) / 3
    blocks = Prune(granularity="depth", criterion="ablation", amount=share, only=("layer1",), schedule="one-shot")
    channels = Prune(granularity="channel", amount=0.5, multiple=16, only=("layer3.*.conv1",), schedule="one-shot")
    return channels.apply(blocks.apply(model, world), world)


def _int8(model: nn.Module, world: Run) -> nn.Module:
    from copy import deepcopy

    from compress_quantize import Quantize

    return Quantize().apply(deepcopy(model), world)


def _quantizers(model: nn.Module, world: Run, folder: Path, bench: Bench) -> Iterator[Figure]:
    """The three int8 networks beside fp32."""
    from compress_export import Onnx, OpenVino

    from benchmarks import _files

    files = _exported(model, "fp32", folder, world) | _exported(_int8(model, world), "int8", folder, world)
    images = [batch["image"].contiguous().numpy() for batch in world.calibration()]
    peers = {ONNX: "onnxruntime's static quantizer", OPENVINO: "NNCF"}
    (folder / "peer").mkdir()
    _files.onnxruntime_static(
        folder / "fp32" / ONNX / "model.onnx", [{"image": part} for part in images], folder / "peer" / "model.onnx"
    )
    files[f"peer {ONNX}"] = Onnx().load(folder / "peer", 1)
    _files.nncf_static(folder / "fp32" / OPENVINO / "model.xml", images, folder / "nncf")
    files[f"peer {OPENVINO}"] = OpenVino().load(folder / "nncf", 1)
    hits = {name: _files.right(call, world.splits, world.task) for name, call in files.items()}
    timing = _files.timed(files, world.splits, world.task, BATCH, [f"fp32 {ONNX}"])
    for runtime, peer in peers.items():
        lost = _files.difference(hits[f"fp32 {runtime}"], hits[f"int8 {runtime}"])
        theirs = _files.difference(hits[f"fp32 {runtime}"], hits[f"peer {runtime}"])
        yield Figure(
            f"accuracy lost in {runtime} without training",
            lost[0],
            "points",
            False,
            peer,
            theirs[0],
            goal=0.2,
            low=lost[1],
            high=lost[2],
            note=f"fp32 has {100 * float(hits[f'fp32 {runtime}'].mean()):.2f} %; paired 95 % interval",
        )
        own, other = (timing.speedup(f"{who} {runtime}", f"fp32 {runtime}") for who in ("int8", "peer"))
        beside = timing.speedup(f"int8 {runtime}", f"peer {runtime}")
        yield Figure(
            f"speed-up in {runtime} by int8 alone, batch {BATCH}",
            own.value,
            "times",
            True,
            peer,
            other.value,
            goal=other.value,
            low=own.low,
            high=own.high,
            note=f"over fp32 in {runtime}; beside the peer {beside.value:.3f} times as fast, 95 % interval "
            f"{beside.low:.3f} to {beside.high:.3f}" + _disturbed(timing.disturbed),
        )


def _pruned_figures(dense: nn.Module, pruned: nn.Module, world: Run, folder: Path, bench: Bench) -> Iterator[Figure]:
    """The pruned int8 network beside the dense one in its fastest fp32 runtime."""
    from benchmarks import _files
    from compress_core.measure import counts

    files = _exported(dense, "dense", folder, world) | _exported(_int8(pruned, world), "pruned", folder, world)
    hits = {name: _files.right(call, world.splits, world.task) for name, call in files.items()}
    fp32 = [name for name in files if name.startswith("dense")]
    timing = _files.timed(files, world.splits, world.task, BATCH, fp32)
    best = min(fp32, key=lambda name: timing.time(name).value)
    fastest = min((name for name in files if name not in fp32), key=lambda name: timing.time(name).value)
    speed = timing.speedup(fastest, best)
    fewer = counts(dense, world.example).macs / counts(pruned, world.example).macs
    milliseconds = ", ".join(f"{name} {1000 * timing.time(name).value:.3g} ms" for name in files)
    yield Figure(
        f"speed-up pruned and in int8, batch {BATCH}",
        speed.value,
        "times",
        True,
        f"fp32 in {best.removeprefix('dense ')}, the faster of two",
        1.0,
        goal=SPEED,
        low=speed.low,
        high=speed.high,
        seeds=bench.seeds[:1],
        note=f"{fewer:.2f} times fewer MACs; {milliseconds}" + _disturbed(timing.disturbed),
    )
    lost = _files.difference(hits[best], hits[fastest])
    yield Figure(
        "accuracy lost pruned and in int8",
        lost[0],
        "points",
        False,
        "the dense network, fine-tuned alike",
        0.0,
        goal=1.0,
        low=lost[1],
        high=lost[2],
        seeds=bench.seeds[:1],
        note=f"the dense one has {100 * float(hits[best].mean()):.2f} %; paired 95 % interval",
    )


def _exported(model: nn.Module, name: str, folder: Path, world: Run) -> dict[str, Call]:
    """A network in both runtimes, on one thread."""
    from compress_export import Onnx, OpenVino

    found = {}
    for runtime, exporter in ((ONNX, Onnx()), (OPENVINO, OpenVino())):
        place = folder / name / runtime
        exporter.export(model.cpu().eval(), place, world.example)
        found[f"{name} {runtime}"] = exporter.load(place, 1)
    return found


def _disturbed(disturbed: bool) -> str:
    return "; disturbed" if disturbed else ""
