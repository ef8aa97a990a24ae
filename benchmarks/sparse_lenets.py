"""LeNet-300-100 with 2 % and LeNet-5 with 1 % of their parameters on MNIST, beside the dense networks.

Dense: trained from scratch, AdamW with a cosine schedule. Sparse: one step more from there with `prune` (single
weights, over the network, gradual), `distill` (from the dense network) and `tune` together. Everything was chosen on
5,000 held-out training images, by which the epoch is chosen too; the 10,000 test images are read once, when all
networks of all seeds are ready. What is left counts every parameter that is not zero, biases too. "No loss" means that
the mean over the seeds is no lower than the dense networks'. With --full the dense networks are also trained on like
the sparse ones, only without `prune`, for what the longer training and the teacher give by themselves.

Time: 20 minutes on one core; --full trains twice as long and more, 90 minutes. Needs `mnist` in COMPRESS_DATA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
DENSE: Mapping[str, Any] = {"batch_size": 128, "schedule": "cosine", "weight_decay": 0.0}
SPARSE: Mapping[str, Any] = {"batch_size": 128, "schedule": "cosine", "weight_decay": 0.0, "learning_rate": 5e-3}


@dataclass(frozen=True)
class Protocol:
    """How one network is trained and pruned."""

    name: str
    factory: str
    amount: float
    """The share of the weights that goes; biases stay."""
    left: float
    """The goal: the largest share of all parameters that is left, in percent."""
    dense_epochs: int
    epochs: int
    """Of the sparse network."""
    full_epochs: int
    tune: Mapping[str, Any] = field(default_factory=lambda: SPARSE)
    prune: Mapping[str, Any] = field(default_factory=lambda: {"allocation": "global", "end": 0.5})
    distill: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 4.0, "weight": 0.9})


PROTOCOLS = (
    Protocol("LeNet-300-100", "LeNet300100", amount=0.982, left=2.0, dense_epochs=20, epochs=40, full_epochs=100),
    Protocol("LeNet-5", "LeNet5", amount=0.9914, left=1.0, dense_epochs=10, epochs=20, full_epochs=60),
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
    ready = [(protocol, [trained(protocol, splits, seed, bench) for seed in bench.seeds]) for protocol in PROTOCOLS]
    for protocol, found in ready:
        yield from figures(protocol, found, splits, bench)


def trained(protocol: Protocol, splits: Splits, seed: int, bench: Bench) -> Trained:
    """The dense and the sparse network of one seed."""
    from compress_distill import Distill
    from compress_prune import Prune
    from compress_tune import Tune

    epochs = protocol.full_epochs if bench.full else protocol.epochs
    prune = Prune(amount=protocol.amount, **protocol.prune)
    together: list[Technique] = [Distill(**protocol.distill), Tune(epochs=epochs, **protocol.tune)]
    dense = step(fresh(protocol.factory, seed), [Tune(epochs=protocol.dense_epochs, **DENSE)], splits, seed)
    bench.say(f"{protocol.name}, seed {seed}: dense {validation(dense, splits):.2f} % of the held-out images")
    sparse = step(dense, [prune, *together], splits, seed)
    bench.say(f"{protocol.name}, seed {seed}: sparse {validation(sparse, splits):.2f} % of the held-out images")
    return Trained(dense, sparse, step(dense, together, splits, seed) if bench.full else None)


def figures(protocol: Protocol, found: list[Trained], splits: Splits, bench: Bench) -> Iterator[Figure]:
    """What is left, and the accuracy on the test images."""
    name, seeds = protocol.name, bench.seeds
    shares = [100 * nonzero(entry.sparse) / total(entry.sparse) for entry in found]
    yield Figure(
        f"{name}: parameters left",
        max(shares),
        "%",
        False,
        "dense",
        100.0,
        goal=protocol.left,
        seeds=seeds,
        note=f"the most of all seeds; {nonzero(found[0].sparse):,} of {total(found[0].sparse):,}, biases included",
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
            "dense networks trained on in the same way without `prune`",
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
