"""Masks while training, against a bare training loop; global pruning of 100 million weights, against torch's own.

Steps: a training with `prune` (gradual, global, to 90 %) and `tune`, the same without `prune`, and a bare loop with the
same network, batches, loss and optimizer take turns of three steps in one process. A round is as long as the schedule
takes from one update of the masks to the next (100 updates in the first half of 10 epochs of ResNet-20 on 32x32 images,
of 40 epochs of LeNet-300-100 on 28x28 images; batches of 128). Of each round counts (with masks - without) / bare, in
processor time of the one thread, so that other programs do not count. The images are noise: times do not depend on it.

Pruning at once: ten linear layers of 10 million weights each, 90 % of all go; time and peak growth of the resident
memory in a fresh process each, beside `torch.nn.utils.prune.global_unstructured`. Goals: under 10 s, and less growth
than a second copy of the weights (400 MB) would take.

Time: 6 minutes on one core; --full takes three times as many rounds, 15 minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Semaphore, Thread
from time import perf_counter, process_time
from traceback import format_exc
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Bench, Figure

if TYPE_CHECKING:
    from torch import nn

    from compress_core.data import Splits
    from compress_core.run import Run

BATCH = 128
IMAGES = 50_000
NETS = {"ResNet-20": ("ResNet20", (3, 32, 32), 10), "LeNet-300-100": ("LeNet300100", (1, 28, 28), 40)}
"""The factory in compress_zoo, the shape of an image, and the epochs of the training whose steps are timed."""
ROUNDS = {"ResNet-20": 7, "LeNet-300-100": 15}
SLICE = 3
"""Steps of one turn."""
LAYERS, INPUTS, OUTPUTS = 10, 4000, 2500
AMOUNT = 0.9
MEGABYTE = 1_000_000


def run(bench: Bench) -> Iterator[Figure]:
    """What masks add to the steps of each network, then time and memory of pruning at once."""
    for name in NETS:
        rounds = ROUNDS[name] * (3 if bench.full else 1)
        bench.say(f"{name}: {rounds} rounds")
        yield from _steps(name, rounds, bench.threads)
    bench.say("100 million weights")
    ours, torchs = (_in_process(f"at_once({which!r}, {bench.threads})") for which in ("ours", "torch"))
    peer = "torch.nn.utils.prune.global_unstructured"
    yield Figure("prune 100 million weights, time", ours["seconds"], "s", False, peer, torchs["seconds"], goal=10.0)
    yield Figure(
        "prune 100 million weights, growth of memory",
        ours["bytes"] / MEGABYTE,
        "MB",
        False,
        peer,
        torchs["bytes"] / MEGABYTE,
        goal=float(LAYERS * INPUTS * OUTPUTS * 4 / MEGABYTE),
        note="the masks, one byte a weight, are 100 MB of it",
    )


def _steps(name: str, rounds: int, threads: int) -> Iterator[Figure]:
    from compress_core.timing import median_interval

    found = _in_process(f"print_times({name!r}, {rounds}, {threads})")
    turns = list(zip(*found.values(), strict=True))
    shares = {
        "what masks add": ([(masked - plain) / bare for masked, plain, bare in turns], 5.0),
        "what the loop adds": ([(plain - bare) / bare for _, plain, bare in turns], None),
    }
    for what, (values, goal) in shares.items():
        share = median_interval(values)
        yield Figure(
            f"{name}: {what}",
            100 * share.value,
            "% of a bare step",
            False,
            "a bare PyTorch loop",
            goal=goal,
            low=100 * share.low,
            high=100 * share.high,
            note=f"median of {rounds} rounds with its 95 % interval; a bare step takes "
            f"{1000 * median_interval(found['bare']).value:.3g} ms of processor time",
        )


def times(name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time per step, round by round: with masks, without, and bare."""
    import compress_zoo
    from compress_prune import Prune

    from compress_core.seeding import seeded

    factory, shape, epochs = NETS[name]
    splits = _noise(shape)
    block = round(epochs * (IMAGES // BATCH) * 0.5 / 100)

    def network() -> nn.Module:
        with seeded(0):
            model: nn.Module = getattr(compress_zoo, factory)()
        return model

    masked = _Training(network(), splits, epochs, [Prune(amount=AMOUNT, allocation="global")])
    plain = _Training(network(), splits, epochs, [])
    contestants = {"masks": masked.steps, "plain": plain.steps, "bare": _bare_steps(network(), splits)}
    found: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    try:
        for turn in range(-1, rounds):
            spent = dict.fromkeys(contestants, 0.0)
            for done in range(0, block, SLICE):
                order = list(contestants) if done // SLICE % 2 else list(contestants)[::-1]
                for contestant in order:
                    start = process_time()
                    contestants[contestant](min(SLICE, block - done))
                    spent[contestant] += process_time() - start
            if turn >= 0:
                for contestant, seconds in spent.items():
                    found[contestant].append(seconds / block)
    finally:
        masked.stop()
        plain.stop()
    return found


def print_times(name: str, rounds: int, threads: int) -> None:
    """Print the times."""
    import torch

    from compress_core.timing import garbage_resting

    torch.set_num_threads(threads)
    with garbage_resting():
        print(json.dumps(times(name, rounds)))


class _Stop(Exception):
    """Ends a training whose steps have been timed."""


class _Training:
    """A training by the product's own loop that does as many steps as it is told to, in a thread of its own.

    Only one of the threads works at a time: whoever asks for steps waits for them.
    """

    def __init__(self, model: nn.Module, splits: Splits, epochs: int, techniques: list[Any]) -> None:
        from compress_tasks import Classification
        from compress_tune import Tune

        from compress_core.run import Run

        self.left, self.stopped, self.error = 0, False, ""
        self.go, self.done = Semaphore(0), Semaphore(0)
        tune = Tune(epochs=epochs, batch_size=BATCH, optimizer="adamw", schedule="cosine")
        run = Run(splits=splits, task=Classification())
        self.thread = Thread(target=self._train, args=(model, [*techniques, tune, _metronome(self._step)], run))
        self.thread.start()

    def steps(self, count: int) -> None:
        """Do some steps, and return when they are done."""
        self.left = count
        self.go.release()
        self.done.acquire()
        if self.error:
            raise RuntimeError(self.error)

    def stop(self) -> None:
        """End the training."""
        self.stopped = True
        self.go.release()
        self.thread.join()

    def _train(self, model: nn.Module, techniques: list[Any], run: Run) -> None:
        self.go.acquire()
        try:
            if not self.stopped:
                run.train(model, techniques)
                self.error = "the training ended before its last round"
        except _Stop:
            pass
        except Exception:
            self.error = format_exc()
        self.done.release()

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.done.release()
            self.go.acquire()
            if self.stopped:
                raise _Stop


def _metronome(step: Callable[[], None]) -> Any:
    """A technique that only tells of each step; its name puts it last."""
    from compress_core.parts import Change, TrainingTechnique

    class Metronome(TrainingTechnique):
        """Tells of each step."""

        name = "zz_metronome"

        @property
        def changes(self) -> frozenset[Change]:
            return frozenset({Change.TRAINING})

        def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
            step()

    return Metronome()


def _bare_steps(model: nn.Module, splits: Splits) -> Callable[[int], None]:
    """A loop as one writes it by hand, which goes on where it stopped."""
    import torch
    from torch.nn import functional as F

    images, labels = splits.train.column("image"), splits.train.column("label")
    optimizer = torch.optim.AdamW(model.parameters())

    def batches() -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(len(labels))
            for start in range(0, len(labels) - BATCH + 1, BATCH):
                yield order[start : start + BATCH]

    left = batches()

    def steps(count: int) -> None:
        model.train()
        for _ in range(count):
            chosen = next(left)
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    return steps


def _noise(shape: tuple[int, int, int]) -> Splits:
    """As many images as the real data have."""
    import torch

    from compress_core.data import Columns, Splits

    generator = torch.Generator().manual_seed(0)
    train = Columns(
        {
            "image": torch.randn(IMAGES, *shape, generator=generator),
            "label": torch.randint(10, (IMAGES,), generator=generator),
        }
    )
    few = Columns(train.take(torch.arange(BATCH)))
    return Splits(train, few, few)


def _in_process(call: str) -> Any:
    """What a function of this file prints as JSON, in a process of its own.

    All its threads take their memory from one place: with a place for each, glibc serves the trainings, which run in
    threads, otherwise than the bare loop.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.mask_overhead import *; {call}"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{call} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def at_once(which: str, threads: int) -> None:
    """Prune the large network, and print what it took."""
    import torch
    from compress_prune import Prune
    from compress_tasks import Classification
    from torch import nn
    from torch.nn.utils import prune as torchs

    from compress_core.data import Columns, Splits
    from compress_core.run import Run

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    few = Columns({"image": torch.randn(2, INPUTS), "label": torch.tensor([0, 1])})
    run = Run(splits=Splits(few, few, few), task=Classification())
    layers = [
        nn.Linear(*((INPUTS, OUTPUTS) if index % 2 == 0 else (OUTPUTS, INPUTS)), bias=False) for index in range(LAYERS)
    ]
    model = nn.Sequential(*layers)
    technique = Prune(amount=AMOUNT, allocation="global", schedule="one-shot")
    before, start = resident(), perf_counter()
    if which == "ours":
        technique.apply(model, run)
    else:
        weights = [(layer, "weight") for layer in layers]
        torchs.global_unstructured(weights, torchs.L1Unstructured, amount=AMOUNT)
        for layer, name in weights:
            torchs.remove(layer, name)  # type: ignore[no-untyped-call]
    seconds = perf_counter() - start
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    assert zeros == round(AMOUNT * LAYERS * INPUTS * OUTPUTS), zeros
    print(json.dumps({"seconds": seconds, "bytes": peak() - before}))


def resident() -> int:
    """Bytes of this process in memory."""
    return _status("VmRSS")


def peak() -> int:
    """The most bytes that this process has had in memory."""
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {key}")
