"""ResNet-20 on CIFAR-10 with 4-bit weights, trained with learned step sizes, against the dense network.

Three networks start from the published weights and are fine-tuned alike: the same images (shifted and mirrored),
epochs, batches of 128, SGD and cosine, in bfloat16 with float32 weights; none chooses an epoch. First the dense one,
which then teaches the other two. The teacher counts (measured once beside this benchmark, same seed): by the labels
alone, as the dense network learns, W4A4 has 84.5 % and loses 1.7 points; with the same teacher, a dense network has
86.7 %, 0.7 points more than W4A4. What they are told apart by:

    W4A4    weights and what layers read have 4 bits, steps are learned (Esser et al. 2020, LSQ)
    W4A8    weights have 4 bits and what layers read 8

The first and the last layer keep 8 bits, as is usual, and so does what the residual sums read and write, which the
literature leaves in floating point. Every BatchNorm is folded in the end, and biases are int32.

Accuracy is that of the ONNX files in onnxruntime, bytes those of the artifacts (tensors and manifest) that are
shipped, two weights to a byte. The files are a re-encoding on which the network as published has 81.0 %. The 10,000
test images are read once, in the end. Runtimes have no kernels for 4 bits: the files are smaller, and as fast as int8.

Time: 14 minutes on one busy core, with 10,000 training images, 4 epochs and one seed; --full takes 49,000 images, 10
epochs and one seed, 1.5 hours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._resnets import fine_tuning, published, run_of, splits_anew
from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.data import Splits
    from compress_core.run import Run

TRAIN, VALIDATION = 10_000, 1_000
EPOCHS, FULL_EPOCHS = 4, 10
RATE = 0.02
GOAL = 1.0
"""Points that may be lost to the dense network."""
DENSE, W4A4, W4A8 = "dense network", "W4A4", "W4A8"
BITS = {W4A4: (4, 4), W4A8: (4, 8)}
FACTORY = "compress_zoo:ResNet20"


@dataclass(frozen=True)
class Protocol:
    """What all networks have in common."""

    train: int | None
    epochs: int
    seed: int

    @classmethod
    def of(cls, bench: Bench) -> Protocol:
        """The one of the mode."""
        if bench.full:
            return cls(None, FULL_EPOCHS, bench.seeds[0])
        return cls(TRAIN, EPOCHS, bench.seeds[0])


def run(bench: Bench) -> Iterator[Figure]:
    """Fine-tune, quantize, and compare the files."""
    protocol = Protocol.of(bench)
    splits = splits_anew(bench, protocol.seed, protocol.train, VALIDATION)
    nets = _networks(bench, protocol, splits)
    with tempfile.TemporaryDirectory() as folder:
        world = run_of(bench, protocol.seed, splits())
        sizes = {name: _artifact_bytes(net, Path(folder) / f"{name} artifact") for name, net in nets.items()}
        right = {name: _right(net, Path(folder) / name, world) for name, net in nets.items()}
    yield from _figures(right, sizes, protocol)


def _networks(bench: Bench, protocol: Protocol, splits: Callable[[], Splits]) -> dict[str, nn.Module]:
    """The three networks, trained."""
    from compress_distill import Distill
    from compress_quantize import Quantize

    bench.say(DENSE)
    tune = fine_tuning(protocol.epochs, RATE)
    nets = {DENSE: run_of(bench, protocol.seed, splits()).train(published(bench, 20), [tune])}
    for name, (weights, activations) in BITS.items():
        bench.say(name)
        taught = run_of(bench, protocol.seed, splits(), teacher=nets[DENSE])
        quantize = Quantize(bits=weights, activation_bits=activations, learned=True)
        nets[name] = taught.train(published(bench, 20), [quantize, Distill(), tune])
    return nets


def _artifact_bytes(net: nn.Module, folder: Path) -> int:
    """The bytes of the artifact, with everything that it needs."""
    from compress_core.artifact import save
    from compress_core.measure import shipped_bytes

    save(net, folder, factory=FACTORY)
    return shipped_bytes(folder)


def _right(net: nn.Module, folder: Path, world: Run) -> Tensor:
    """1 for each test image that the exported network classifies rightly, else 0."""
    from compress_export import Onnx

    from benchmarks._files import right

    Onnx().export(net.cpu().eval(), folder, world.example)
    return right(Onnx().load(folder, threads=1), world.splits, world.task)


def _figures(right: Mapping[str, Tensor], sizes: Mapping[str, int], protocol: Protocol) -> Iterator[Figure]:
    """What was found."""
    from benchmarks._files import difference

    accuracy = {name: 100 * float(hits.mean()) for name, hits in right.items()}
    for name, (weights, activations) in BITS.items():
        value, low, high = difference(right[DENSE], right[name])
        yield Figure(
            f"accuracy lost with {weights}-bit weights and {activations}-bit activations",
            value,
            "points",
            False,
            DENSE,
            goal=GOAL,
            low=low,
            high=high,
            seeds=(protocol.seed,),
            note=f"{accuracy[name]:.2f} % after {accuracy[DENSE]:.2f} % of the dense network, fine-tuned alike; "
            "95 % interval over the test images; first and last layer and residual sums have 8 bits",
        )
    for name in BITS:
        yield Figure(f"artifact, {name}", sizes[name], "bytes", False, DENSE, sizes[DENSE], note="tensors and manifest")
