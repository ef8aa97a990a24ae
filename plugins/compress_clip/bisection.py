"""The largest share that keeps a bound, found by bisection.

    low, high = 0, 1;  repeat:  m = (low + high) / 2;  low = m if m keeps the bound else high = m

The quality is taken to fall as the share rises. Where it does not, a share beyond the one that is found may keep the
bound as well; the one that is found was measured, and does.

Source: the bisection method, Burden & Faires, Numerical Analysis, sec. 2.1. Cost: `STEPS` evaluations,
each of a network whose weights were clipped anew, and a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

STEPS = 10
"""The share is found to 1/1024."""


def largest(keeps: Callable[[float], bool], steps: int = STEPS) -> float:
    """The largest of the tried shares in [0, 1) that keeps the bound; 0 if none does."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low
