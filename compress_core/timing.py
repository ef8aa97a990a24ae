"""Time per call of several networks, measured beside one another in one process.

A *block* calls one network as often as fits into some 15 ms; a *round* has one block of every network, forwards
and backwards by turns, so that a machine that grows warm or busy treats all alike. What is reported is

    speed-up  = median over the rounds of  time(opponent) / time(network)     (each round is its own comparison)
    time      = median over the rounds of  time(block) / calls(block)

each with the distribution-free 95 % interval of a median from order statistics (David and Nagaraja 2003, sec. 7.1).
A measurement in which an opponent's own blocks disagree is made again; if that does not help it is marked as
disturbed. The garbage collector rests during the blocks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import comb
from statistics import median, quantiles
from time import perf_counter
from typing import Any

CONFIDENCE = 0.95
BLOCK_SECONDS = 0.015
FEWEST_ROUNDS = 7
"""Six rounds are the fewest whose extremes enclose the median with 95 % confidence."""
MOST_ROUNDS = 41
WARM_UP = 3
SPREAD = 0.15
"""Largest interquartile range of an opponent's blocks, as a share of their median."""
DRIFT = 0.10
"""Largest difference between the medians of an opponent's first and last blocks, as a share of the smaller."""

Call = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Estimate:
    """A median with its 95 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Latency:
    """Time of one call in milliseconds, and how many times faster it is than its opponent."""

    batch: int
    threads: int
    milliseconds: Estimate
    speedup: Estimate
    """Opponent's time / own time: the dense network in the same runtime."""
    speedup_to_eager: Estimate
    """The same against the dense network in eager torch."""
    disturbed: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Seconds per call, network by network and round by round."""

    seconds: Mapping[str, Sequence[float]]
    disturbed: bool
    attempts: int

    @property
    def rounds(self) -> int:
        """How many rounds the last attempt had."""
        return len(next(iter(self.seconds.values())))

    def time(self, name: str) -> Estimate:
        """Seconds per call."""
        return median_interval(self.seconds[name])

    def speedup(self, name: str, opponent: str) -> Estimate:
        """How many times faster than the opponent: above 1 is faster."""
        return median_interval(ratios(self.seconds[opponent], self.seconds[name]))

    def latency(self, name: str, opponent: str, eager: str, *, batch: int, threads: int) -> Latency:
        """All that a report says of one network."""
        return Latency(
            batch=batch,
            threads=threads,
            milliseconds=self.time(name).scaled(1000),
            speedup=self.speedup(name, opponent),
            speedup_to_eager=self.speedup(name, eager),
            disturbed=self.disturbed,
        )


def interval_rank(count: int, confidence: float = CONFIDENCE) -> int:
    """The rank k, from 1, such that the k-th smallest and k-th largest of `count` values enclose the median.

    The largest k with 2 P(Binomial(count, 1/2) < k) <= 1 - confidence; 1 where there are too few values for it.
    """
    total, below = 2**count, 0
    for rank in range(count // 2 + 1):
        below += comb(count, rank)
        if 2 * below > (1 - confidence) * total:
            return max(1, rank)
    return max(1, count // 2)


def median_interval(values: Sequence[float]) -> Estimate:
    """The median and its distribution-free 95 % interval."""
    ordered = sorted(values)
    rank = interval_rank(len(ordered))
    return Estimate(median(ordered), ordered[rank - 1], ordered[-rank])


def ratios(opponent: Sequence[float], own: Sequence[float]) -> list[float]:
    """Round by round, the opponent's time over the own time."""
    return [theirs / mine for theirs, mine in zip(opponent, own, strict=True)]


def is_disturbed(blocks: Sequence[float]) -> bool:
    """Whether blocks of the same work disagree: their middle half is too wide, or their two halves differ."""
    middle = median(blocks)
    first, _, third = quantiles(blocks, n=4, method="inclusive")
    half = len(blocks) // 2
    early, late = median(blocks[:half]), median(blocks[-half:])
    return (third - first) / middle > SPREAD or abs(early - late) / min(early, late) > DRIFT


def calls_per_block(seconds_per_call: float, block_seconds: float = BLOCK_SECONDS) -> int:
    """How many calls fill a block; at least one."""
    return max(1, round(block_seconds / max(seconds_per_call, 1e-9)))


def rounds_within(seconds: float, round_seconds: float) -> int:
    """How many rounds fit, between `FEWEST_ROUNDS` and `MOST_ROUNDS`."""
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / round_seconds)))


def measure(
    calls: Mapping[str, Call],
    opponents: Collection[str],
    *,
    seconds: float = 1.5,
    attempts: int = 3,
    clock: Clock = perf_counter,
) -> Timing:
    """Time every call beside the others.

    Args:
        calls: what is timed, by name.
        opponents: the names whose own blocks must agree, or else the measurement is made again.
        seconds: what one attempt may take; a slow network takes `FEWEST_ROUNDS` rounds whatever they cost.
        attempts: how often a disturbed measurement is made at most.
        clock: seconds, monotonic.
    """
    with garbage_resting():
        lengths = {name: calls_per_block(_calibrate(call, clock)) for name, call in calls.items()}
        start = clock()
        _round(calls, lengths, list(calls), clock)
        rounds = rounds_within(seconds, max(clock() - start, 1e-9))
        for attempt in range(1, attempts + 1):
            found = _rounds(calls, lengths, rounds, clock)
            timing = Timing(found, any(is_disturbed(found[name]) for name in opponents), attempt)
            if not timing.disturbed:
                break
    return timing


def _calibrate(call: Call, clock: Clock) -> float:
    """Seconds of the quickest of a few calls, after some to warm up."""
    for _ in range(WARM_UP):
        call()
    return min(_seconds(call, 1, clock) for _ in range(WARM_UP))


def _rounds(calls: Mapping[str, Call], lengths: Mapping[str, int], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds per call of every block, by network."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name, value in _round(calls, lengths, order, clock).items():
            found[name].append(value)
    return found


def _round(
    calls: Mapping[str, Call], lengths: Mapping[str, int], order: Sequence[str], clock: Clock
) -> dict[str, float]:
    found = {}
    for name in order:
        if lengths[name] > 1:
            calls[name]()
        found[name] = _seconds(calls[name], lengths[name], clock) / lengths[name]
    return found


def _seconds(call: Call, times: int, clock: Clock) -> float:
    start = clock()
    for _ in range(times):
        call()
    return clock() - start


@contextmanager
def garbage_resting() -> Iterator[None]:
    """Collect garbage now, and not again until the block ends."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
