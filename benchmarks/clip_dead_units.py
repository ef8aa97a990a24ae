"""LeNet-300-100 clipped and without its dead units: bytes and time of the ONNX file, beside the dense network's.

Dense: LeNet-300-100 trained on MNIST with AdamW and a cosine schedule. Clipped: the same network trained on with an L1
penalty; then `clip` with the share that costs at most 0.1 points of 5,000 held-out images, over the network, which also
takes out the units that no weight feeds or reads any more; then trained on for a little, distilled from the dense one.
Both are exported to ONNX and run by onnxruntime beside one another, in processor time of one thread. Beside them stands
the clipped network with its dead units: there only the count of non-zeros falls. The test images are read at the end.

Time: 3 minutes on one core; --full trains 3 times as long, 9 minutes. Needs `mnist` in COMPRESS_DATA.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import process_time
from typing import TYPE_CHECKING, Any

from benchmarks._lenets import accuracy, fresh, mnist, nonzero, step, validation
from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import nn

    from compress_core.data import Splits

EPOCHS, L1_EPOCHS, LAST_EPOCHS = 10, 10, 5
"""Of the dense network, of the training with the penalty, and of the one after clipping."""
L1 = 1e-4
MAX_LOSS = 0.1
WITHIN = 0.2
"""Points of test accuracy that may go."""
WANTED = 1.1
"""How many times smaller and faster the file has to be, at least."""
BATCHES = (1, 64)
PEER = "the dense network in onnxruntime"


@dataclass
class Trained:
    """The networks of one seed."""

    dense: nn.Module
    clipped: nn.Module
    unadjusted: nn.Module
    """Clipped like it, with its dead units."""

    @property
    def all(self) -> dict[str, nn.Module]:
        """By name."""
        return {"dense": self.dense, "clipped": self.clipped, "unadjusted": self.unadjusted}


def run(bench: Bench) -> Iterator[Figure]:
    """Train, clip, export and measure."""
    splits = mnist(bench)
    found = [trained(splits, seed, bench) for seed in bench.seeds]
    with tempfile.TemporaryDirectory() as folder:
        yield from exported(found[0], splits, Path(folder), bench)
    accuracies = {name: [accuracy(entry.all[name], splits) for entry in found] for name in ("dense", "clipped")}
    gains = [mine - theirs for mine, theirs in zip(accuracies["clipped"], accuracies["dense"], strict=True)]
    yield Figure(
        "change of test accuracy",
        mean(gains),
        "points",
        True,
        "the dense network",
        goal=-WITHIN,
        seeds=bench.seeds,
        note=f"clipped {mean(accuracies['clipped']):.2f} %, dense {mean(accuracies['dense']):.2f} %; seed by seed "
        + ", ".join(f"{gain:+.2f}" for gain in gains),
    )
    yield Figure(
        "parameters that are not zero",
        mean(nonzero(entry.clipped) for entry in found),
        "parameters",
        False,
        "the dense network",
        float(nonzero(found[0].dense)),
        seeds=bench.seeds,
    )


def trained(splits: Splits, seed: int, bench: Bench) -> Trained:
    """The dense network, and what clipping makes of it."""
    from compress_clip import Clip
    from compress_distill import Distill
    from compress_tune import Tune

    longer = 3 if bench.full else 1
    plan: dict[str, Any] = {"batch_size": 128, "schedule": "cosine", "weight_decay": 0.0}
    dense = step(fresh("LeNet300100", seed), [Tune(epochs=longer * EPOCHS, **plan)], splits, seed)
    bench.say(f"seed {seed}: dense {validation(dense, splits):.2f} % of the held-out images")
    penalized = step(dense, [Tune(epochs=longer * L1_EPOCHS, l1=L1, keep="last", **plan)], splits, seed)
    clip: dict[str, Any] = {"max_loss": MAX_LOSS, "scope": "global"}
    clipped = step(penalized, [Clip(**clip)], splits, seed, say=bench.say)
    after = [Tune(epochs=longer * LAST_EPOCHS, **plan), Distill(temperature=4.0, weight=0.9)]
    clipped = step(clipped, after, splits, seed, teacher=dense)
    bench.say(f"seed {seed}: clipped {validation(clipped, splits):.2f} % of the held-out images")
    return Trained(dense, clipped, step(penalized, [Clip(**clip, adjust=False)], splits, seed))


def exported(found: Trained, splits: Splits, folder: Path, bench: Bench) -> Iterator[Figure]:
    """Bytes and times of the files of one seed."""
    from compress_export import Onnx

    from compress_core.timing import measure

    onnx, example = Onnx(), splits.train.column("image")[:2]
    for name, model in found.all.items():
        onnx.export(model, folder / name, ((example,), {}))
    sizes = {name: float((folder / name / "model.onnx").stat().st_size) for name in found.all}
    seed, shapes = bench.seeds[:1], [str(weight.shape[0]) for weight in found.clipped.parameters() if weight.ndim == 2]
    note = (
        f"784-{'-'.join(shapes)} is left of 784-300-100-10; with its dead units it has {sizes['unadjusted']:,.0f} bytes"
    )
    yield Figure("ONNX file", sizes["clipped"], "bytes", False, PEER, sizes["dense"], seeds=seed, note=note)
    yield Figure("ONNX file, times smaller", sizes["dense"] / sizes["clipped"], "times", True, PEER, 1.0, goal=WANTED)
    for size in BATCHES:
        images = splits.validation.column("image")[:size]
        calls: dict[str, Callable[[], Any]] = {
            name: _call(onnx.load(folder / name, bench.threads), images) for name in found.all
        }
        timing = measure(calls, list(calls), seconds=6.0, clock=process_time)
        faster, idle = timing.speedup("clipped", "dense"), timing.speedup("unadjusted", "dense")
        milliseconds = {name: 1000 * timing.time(name).value for name in calls}
        yield Figure(
            f"speed-up at batch {size}",
            faster.value,
            "times",
            True,
            PEER,
            1.0,
            goal=WANTED,
            low=faster.low,
            high=faster.high,
            seeds=seed,
            note=f"{milliseconds['clipped']:.4f} ms instead of {milliseconds['dense']:.4f} ms; with its dead units "
            f"{idle.value:.2f} times; medians of {timing.rounds} rounds with the 95 % interval"
            + ("; DISTURBED by other work" if timing.disturbed else ""),
        )


def _call(network: Callable[..., Any], images: Any) -> Callable[[], Any]:
    return lambda: network(images)
