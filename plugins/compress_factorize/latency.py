"""Ranks for a measured time: the largest budget of multiplications with which a call takes at most a share of its time.

    share = median over the rounds of  time(factorized) / time(dense)                (one process, by turns)

Multiplications tell too little: a chain of small layers moves more data than it saves arithmetic, and a runtime has
its own mind. So the network with the ranks of a budget is run beside the dense one, and the budget is found by
bisection. Networks of one budget differ from those of a smaller one by more multiplications only, and time is taken to
rise with them; if it does not, the result still meets the target, for it is one that was measured to do so.

Source: Yang et al. 2018, NetAdapt, sec. 3 (time measured on the device rather than derived).
Cost: at most `MEASUREMENTS` networks, a second each, and their export where the runtime is not torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress_core.modes import leave_fused_paths
from compress_core.timing import measure
from compress_factorize.layers import put
from compress_factorize.pieces import Factors
from compress_factorize.ranks import Budget, Option, Ranks

if TYPE_CHECKING:
    from compress_core.parts import Exporter
    from compress_core.run import Example, Run

MEASUREMENTS = 8
SECONDS = 0.6
"""What one attempt of a measurement may take."""

Call = Callable[[], Any]
Timed = Callable[[nn.Module], float]
"""The share of the dense network's time that a network takes."""


class Stopwatch:
    """Called with a network, the share of the dense network's time that a call of it takes."""

    def __init__(self, dense: nn.Module, exporter: Exporter | None, batch: int, run: Run) -> None:
        """Open the dense network.

        Args:
            dense: the network as it is.
            exporter: the runtime; torch without one.
            batch: examples per call.
            run: gives the examples.
        """
        self.exporter = exporter
        columns = run.splits.train.take(torch.arange(batch) % len(run.splits.train))
        self.example = run.task.inputs({name: column.to(run.device) for name, column in columns.items()})
        self.dense = self._opened(deepcopy(dense))

    def __call__(self, model: nn.Module) -> float:
        """Measure."""
        found = measure({"dense": self.dense, "factorized": self._opened(model)}, ["dense"], seconds=SECONDS)
        return 1 / found.speedup("factorized", "dense").value

    def _opened(self, model: nn.Module) -> Call:
        """A call of a network in the runtime."""
        model = model.eval()
        arguments, keywords = self.example
        if self.exporter is None:
            return lambda: _quietly(model, self.example)
        with tempfile.TemporaryDirectory() as folder:
            self.exporter.export(model, Path(folder), self.example)
            runtime = self.exporter.load(Path(folder), torch.get_num_threads())
            runtime(*arguments, **keywords)  # whatever it reads lazily is read while the folder is there
        return lambda: runtime(*arguments, **keywords)


def by_latency(
    model: nn.Module, layers: Mapping[str, Option], budget: Budget, share: float, timed: Timed
) -> tuple[Ranks | None, float]:
    """The ranks of the largest budget whose network takes at most a share of the time, and the share that it takes.

    None for the ranks if even the smallest takes more; the share is then that of the smallest.
    """
    known: dict[tuple[str, tuple[int, ...]], Factors] = {}
    low, high = budget.smallest, 1.0
    best = budget.ranks(low)
    taken = timed(_built(model, layers, best, known))
    if taken > share:
        return None, taken
    for _ in range(MEASUREMENTS - 1):
        middle = (low + high) / 2
        ranks = budget.ranks(middle)
        found = timed(_built(model, layers, ranks, known))
        if found <= share:
            low, best, taken = middle, ranks, found
        else:
            high = middle
    return best, taken


def _built(
    model: nn.Module, layers: Mapping[str, Option], ranks: Ranks, known: dict[tuple[str, tuple[int, ...]], Factors]
) -> nn.Module:
    """A copy of the network with these ranks; pieces that were computed before are taken again."""
    copy = deepcopy(model)
    for path, wanted in ranks.items():
        if (path, wanted) not in known:
            known[path, wanted] = layers[path].factors(wanted)
        copy = put(copy, path, deepcopy(known[path, wanted].pieces))
    leave_fused_paths(copy, ranks)
    return copy


@torch.no_grad()
def _quietly(model: nn.Module, example: Example) -> Any:
    arguments, keywords = example
    return model(*arguments, **keywords)
