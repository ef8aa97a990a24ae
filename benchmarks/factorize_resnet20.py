"""Factorizing ResNet-20 by what its layers answer, against plain SVD at the same MACs, before any training.

The published CIFAR-10 weights; the ranks of all layers for a share of the multiplications, and the pieces, once from
512 training images without labels (`fit: data`, the default) and once from the weights alone (`fit: weight`). The same
solver deals out both budgets, and both sides are shown with the statistics of batch normalization measured again on the
same 512 images, and without. Accuracy on the 10,000 test images, each network once. The files are a re-encoding on
which the network as published has 81.0 %. Goal: above the upper end of plain SVD's 95 % interval.

Time: 10 minutes on one core for spatial chains (k x 1, 1 x k); --full adds Tucker-2 and 1 x 1 behind k x k with all
seeds, 80 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks._resnets import published
from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import nn

    from compress_core.measure import Quality
    from compress_core.run import Run

BUDGETS = (0.7, 0.6, 0.5)
METHODS = ("spatial", "tucker", "channel")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN = 2000
"""Training images that are read; the calibration draws 512 of them."""


def run(bench: Bench) -> Iterator[Figure]:
    """The accuracy of the dense network, and of each budget with both kinds of pieces."""
    from compress_core.measure import counts

    model, world = _setting(bench)
    dense, macs = _tested(model, world), counts(model, world.example).macs
    yield Figure("dense network", _percent(dense.value), "%", True, "none", note=_interval(dense))
    seeds = bench.seeds if bench.full else bench.seeds[:1]
    for method in METHODS if bench.full else METHODS[:1]:
        for budget in BUDGETS:
            for again in (True, False):
                yield _figure(model, world, macs, (method, budget, again), seeds)


def _figure(model: nn.Module, world: Run, macs: int, what: tuple[str, float, bool], seeds: tuple[int, ...]) -> Figure:
    """One budget: pieces from the data beside pieces from the weights."""
    from compress_core.measure import counts

    method, budget, again = what
    found: dict[str, list[Quality]] = {"data": [], "weight": []}
    shares = set()
    for fit, tested in found.items():
        for seed in seeds if fit == "data" or again else seeds[:1]:
            smaller = _factorized(model, replace(world, seed=seed), what, fit)
            shares.add(counts(smaller, world.example).macs / macs)
            tested.append(_tested(smaller, world))
    data, plain = (
        [sum(getattr(one, name) for one in tested) / len(tested) for name in ("value", "low", "high")]
        for tested in found.values()
    )
    measured = ", ".join(f"{share:.1%}" for share in sorted(shares))
    return Figure(
        f"{method} at {budget:.0%} of the MACs" + ("" if again else ", batch normalization as it was"),
        _percent(data[0]),
        "%",
        True,
        "plain SVD, ranks by the same solver",
        _percent(plain[0]),
        goal=_percent(plain[2]),
        low=_percent(data[1]),
        high=_percent(data[2]),
        seeds=seeds,
        note=f"95 % interval of Wilson; the goal is the upper end of the peer's; MACs of both: {measured}",
    )


def _setting(bench: Bench) -> tuple[nn.Module, Run]:
    from compress_data import Parquet
    from compress_tasks import Classification

    from compress_core.run import Run

    folder = str(bench.data("cifar10"))
    splits = Parquet(folder=folder, image="img", limit=TRAIN, mean=MEAN, std=STD).splits(0)
    return published(bench, 20), Run(splits, Classification())


def _factorized(model: nn.Module, world: Run, what: tuple[str, float, bool], fit: str) -> nn.Module:
    from compress_factorize import Factorize

    from compress_core.applying import apply_techniques

    method, budget, again = what
    return apply_techniques(
        model,
        [Factorize.model_validate({"ratio": budget, "of": "macs", "method": method, "fit": fit, "recalibrate": again})],
        world,
    )


def _tested(model: nn.Module, world: Run) -> Quality:
    """The accuracy on the test split."""
    import torch

    from compress_core.data import batches
    from compress_core.measure import quality

    with torch.no_grad():
        return quality(model, batches(world.splits.test, 500), world.task)


def _percent(share: float) -> float:
    return 100 * share


def _interval(found: Quality) -> str:
    return f"95 % interval of Wilson: {found.low:.1%} to {found.high:.1%} of {found.examples:,} test images"
