"""The largest share that keeps a bound, found by bisection.

    low, high = 0, 1;  repeat:  m = (low + high) / 2;  low = m if m keeps the bound else high = m

The quality is taken to fall as the share rises. Where it does not, a share beyond the one that is found may keep the
bound as well; the one that is found was measured, and does.

How much is lost is counted in points: hundredths of a quality of which more is better (accuracy, F1, R2: scales that
end at 1), and per cent of the quality that comes in where less is better (an error, which has no end).

Source: the bisection method, Burden & Faires, Numerical Analysis, sec. 2.1. Cost: `STEPS` evaluations,
each of a network whose weights were clipped anew, and a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress_core.measure import Quality

STEPS = 10
"""The share is found to 1/1024."""


def largest(keeps: Callable[[float], bool], steps: int = STEPS) -> float:
    """The largest of the tried shares in [0, 1) that keeps the bound; 0 if none does."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def points_lost(before: Quality, after: Quality) -> float:
    """How many points a quality has lost; below 0 if it has gained."""
    if before.higher_is_better:
        return 100 * (before.value - after.value)
    lost = after.value - before.value
    if not before.value:
        return float("inf") if lost > 0 else 0.0
    return 100 * lost / abs(before.value)
