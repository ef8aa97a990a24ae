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

from collections.abc import Callable, Mapping
from copy import deepcopy

from torch import nn

from compress_core.modes import leave_fused_paths
from compress_factorize.attention import Opened
from compress_factorize.layers import put
from compress_factorize.pieces import Factors
from compress_factorize.ranks import Budget, Option, Ranks

MEASUREMENTS = 8

Timed = Callable[[nn.Module], float]
"""The share of the dense network's time that a network takes."""


def by_latency(
    model: nn.Module,
    layers: Mapping[str, Option],
    budget: Budget,
    share: float,
    timed: Timed,
    *,
    opened: Opened | None = None,
) -> tuple[Ranks | None, float]:
    """The ranks of the largest budget whose network takes at most a share of the time, and the share that it takes.

    None for the ranks if even the smallest takes more; the share is then that of the smallest.

    Args:
        model: the network.
        layers: what may be replaced.
        budget: the ranks for a share of the multiplications.
        share: of the time.
        timed: measures a network.
        opened: the attention that was taken apart in `model`, to be put back where nothing is replaced.
    """
    opened = opened or Opened()
    known: dict[tuple[str, tuple[int, ...]], Factors] = {}
    low, high = budget.smallest, 1.0
    best = budget.ranks(low)
    taken = timed(_built(model, layers, best, known, opened))
    if taken > share:
        return None, taken
    for _ in range(MEASUREMENTS - 1):
        middle = (low + high) / 2
        ranks = budget.ranks(middle)
        found = timed(_built(model, layers, ranks, known, opened))
        if found <= share:
            low, best, taken = middle, ranks, found
        else:
            high = middle
    return best, taken


def _built(
    model: nn.Module,
    layers: Mapping[str, Option],
    ranks: Ranks,
    known: dict[tuple[str, tuple[int, ...]], Factors],
    opened: Opened,
) -> nn.Module:
    """A copy of the network as it would be with these ranks; pieces that were computed before are taken again."""
    copy = deepcopy(model)
    for path, wanted in ranks.items():
        if (path, wanted) not in known:
            known[path, wanted] = layers[path].factors(wanted)
        copy = put(copy, path, deepcopy(known[path, wanted].pieces))
    deepcopy(opened).close(copy)
    leave_fused_paths(copy, ranks)
    return copy
