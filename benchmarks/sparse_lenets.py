"""LeNet-300-100 with 2 % and LeNet-5 with 1 % of their weights on MNIST, beside the dense networks.

Dense: trained from scratch, AdamW with a cosine schedule, on the pictures as they are. Sparse: one step more from there
with `prune` (single weights, over the network, by the second moment, gradual), `distill`, `augment` and `tune`
together. The teacher is one more network of the same kind and as dense: the first seed's, trained on with `augment`.
Everything was chosen on 5,000 held-out training images, by which the epoch is chosen too; the 10,000 test images are
read once, when all networks of all seeds are ready. Weights are counted as in the literature, without the biases, which
all stay. "No loss" means that the mean over the seeds is no lower than the dense networks'. The sparse networks have
seen augmented pictures and the dense ones have not: with --full the dense networks are also trained on like the sparse
ones, with the same pictures and teacher, only without `prune`.

Time: half an hour on one core; --full trains about three times as long. Needs `mnist` in COMPRESS_DATA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks._lenets import accuracy, fresh, mnist, nonzero, step, total, validation
from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import nn

    from compress_core.data import Splits
    from compress_core.parts import Technique

STUDENT_T = {1: float("nan"), 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""The 97.5 % quantile of Student's distribution for that many seeds."""
PLAN: Mapping[str, Any] = {"batch_size": 128, "schedule": "cosine", "weight_decay": 0.0}
PRUNE: Mapping[str, Any] = {"allocation": "global", "end": 0.5, "criterion": "second-moment"}
DISTILL: Mapping[str, Any] = {"temperature": 2.0, "weight": 0.8}
AUGMENT: Mapping[str, Any] = {"turn": 12.0, "shift": 0.08, "scale": 0.12, "shear": 8.0}
TEACHER_RATE = 2e-3


@dataclass(frozen=True)
class Protocol:
    """How one network is trained and pruned."""

    name: str
    factory: str
    amount: float
    """The share of the weights that goes; the rest is the goal."""
    rate: float
    """The learning rate of the sparse network."""
    dense_epochs: int
    teacher_epochs: int
    epochs: int
    """Of the sparse network."""
    full_epochs: int


PROTOCOLS = (
    Protocol("LeNet-300-100", "LeNet300100", 0.98, 4e-3, dense_epochs=20, teacher_epochs=20, epochs=30, full_epochs=80),
    Protocol("LeNet-5", "LeNet5", 0.99, 3e-3, dense_epochs=6, teacher_epochs=6, epochs=9, full_epochs=30),
)


@dataclass
class Trained:
    """The networks of one seed."""

    dense: nn.Module
    sparse: nn.Module
    further: nn.Module | None


def run(bench: Bench) -> Iterator[Figure]:
    """Train all networks, then read the test images."""
    splits = mnist(bench)
    ready = [(protocol, trained(protocol, splits, bench)) for protocol in PROTOCOLS]
    for protocol, found in ready:
        yield from figures(protocol, found, splits, bench)


def trained(protocol: Protocol, splits: Splits, bench: Bench) -> list[Trained]:
    """The dense and the sparse networks of all seeds."""
    from compress_data import Augment
    from compress_distill import Distill
    from compress_prune import Prune
    from compress_tune import Tune

    def say(what: str, model: nn.Module) -> None:
        bench.say(f"{protocol.name}, {what}: {validation(model, splits):.2f} % of the held-out images")

    epochs = protocol.full_epochs if bench.full else protocol.epochs
    tune = Tune(epochs=epochs, learning_rate=protocol.rate, **PLAN)
    together: list[Technique] = [Distill(**DISTILL), Augment(**AUGMENT), tune]
    teacher: nn.Module | None = None
    found = []
    for seed in bench.seeds:
        dense = step(fresh(protocol.factory, seed), [Tune(epochs=protocol.dense_epochs, **PLAN)], splits, seed)
        say(f"seed {seed}, dense", dense)
        if teacher is None:
            tune_more = Tune(epochs=protocol.teacher_epochs, learning_rate=TEACHER_RATE, **PLAN)
            teacher = step(dense, [Augment(**AUGMENT), tune_more], splits, seed)
            say("teacher", teacher)
        prune = Prune(amount=protocol.amount, **PRUNE)
        sparse = step(dense, [prune, *together], splits, seed, teacher=teacher)
        say(f"seed {seed}, sparse", sparse)
        further = step(dense, together, splits, seed, teacher=teacher) if bench.full else None
        found.append(Trained(dense, sparse, further))
    return found


def figures(protocol: Protocol, found: list[Trained], splits: Splits, bench: Bench) -> Iterator[Figure]:
    """What is left, and the accuracy on the test images."""
    name, seeds = protocol.name, bench.seeds
    counts = [weights_left(entry.sparse) for entry in found]
    everything = 100 * max(nonzero(entry.sparse) for entry in found) / total(found[0].sparse)
    yield Figure(
        f"{name}: weights left",
        max(100 * left / whole for left, whole in counts),
        "%",
        False,
        "dense",
        100.0,
        goal=round(100 * (1 - protocol.amount), 6),
        seeds=seeds,
        note=f"the most of all seeds; {counts[0][0]:,} of {counts[0][1]:,}; with the biases {everything:.2f} % of all "
        "parameters",
    )
    dense = [accuracy(entry.dense, splits) for entry in found]
    sparse = [accuracy(entry.sparse, splits) for entry in found]
    peer = "the dense networks they come from"
    yield Figure(
        f"{name}: test accuracy",
        mean(sparse),
        "%",
        True,
        peer,
        mean(dense),
        goal=mean(dense),
        seeds=seeds,
        note=_note(sparse, dense),
    )
    further = [accuracy(entry.further, splits) for entry in found if entry.further is not None]
    if further:
        yield Figure(
            f"{name}: test accuracy beside longer training",
            mean(sparse),
            "%",
            True,
            "dense networks trained on in the same way, with the same pictures and teacher, without `prune`",
            mean(further),
            seeds=seeds,
            note=_note(sparse, further),
        )


def _note(sparse: list[float], dense: list[float]) -> str:
    """The difference seed by seed, with the interval of its mean."""
    gains = [mine - theirs for mine, theirs in zip(sparse, dense, strict=True)]
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    if len(gains) < 2:
        return f"difference {each} points; one seed has no interval"
    half = STUDENT_T.get(len(gains), 2.0) * stdev(gains) / len(gains) ** 0.5
    return (
        f"difference {mean(gains):+.2f} points, 95 % interval over the seeds {mean(gains) - half:+.2f} to "
        f"{mean(gains) + half:+.2f}; seed by seed {each}; the worst seed has {min(sparse):.2f} %"
    )


def weights_left(model: nn.Module) -> tuple[int, int]:
    """Weights that are not zero, and all of them."""
    from compress_core.weights import weights

    found = [place.parameter for place in weights(model)]
    return sum(int(weight.count_nonzero()) for weight in found), sum(weight.numel() for weight in found)
