"""Schedules: how the learning rate follows the progress p of a training.

    constant     f(p) = 1
    linear       f(p) = 1 - (1 - final) p
    exponential  f(p) = final ^ p
    cosine       f(p) = final + (1 - final) (1 + cos(pi p)) / 2
    step         f(p) = gamma ^ floor(p / size)

    with a warm-up over the share s:   g(p) = b + (1 - b) p / s       for p < s     (b = 0.01)
                                       g(p) = f((p - s) / (1 - s))    after it

The rate is f(p) times the learning rate. p in [0, 1] is the share of all updates (not epochs) that are done, so
a schedule moves at every update and needs to know neither their number nor the size of a batch. The warm-up
begins at a hundredth of the rate rather than at nothing, where the first update would be lost.

Source: cosine: Loshchilov & Hutter 2017, SGDR, eq. 5 (without restarts); warm-up: Goyal et al. 2017, Accurate,
Large Minibatch SGD, sec. 2.2 (gradual, per update). Cost: none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import cos, floor, pi

Schedule = Callable[[float], float]

WARMUP_START = 0.01
"""The factor of the first update of a warm-up."""


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def linear(progress: float, final: float) -> float:
    """A straight line from 1 to `final`."""
    return 1.0 - (1.0 - final) * progress


def exponential(progress: float, final: float) -> float:
    """The same ratio from each update to the next, from 1 to `final` > 0."""
    return float(final**progress)


def cosine(progress: float, final: float) -> float:
    """Half a wave from 1 to `final`, flat at both ends."""
    return final + (1.0 - final) * (1.0 + cos(pi * progress)) / 2.0


def step(progress: float, size: float, gamma: float) -> float:
    """A factor `gamma` after each share `size` of the training."""
    return float(gamma ** floor(progress / size + 1e-9))


def warmed_up(schedule: Schedule, share: float) -> Schedule:
    """The schedule squeezed behind a linear warm-up over `share` of the training, in [0, 1)."""
    return partial(_warmed_up, schedule, share) if share > 0 else schedule


def _warmed_up(schedule: Schedule, share: float, progress: float) -> float:
    if progress < share:
        return WARMUP_START + (1.0 - WARMUP_START) * progress / share
    return schedule((progress - share) / (1.0 - share))
