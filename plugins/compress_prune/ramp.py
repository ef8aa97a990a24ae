"""The schedule of the share that is gone, when weights go little by little.

    s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0))^3        for t in [t_0, t_1]

s(t) is the share of removed weights at progress t, s_i before and s_f after the ramp: many go early, while
the network still has what it takes to recover, and few late.

Source: Han et al. 2015, Learning both weights and connections for efficient neural networks, sec. 3
(magnitudes, retraining); Zhu & Gupta 2017, To prune, or not to prune, eq. 1 (the ramp). Cost: none.
"""

from __future__ import annotations

UPDATES = 100
"""Into how many steps the ramp is cut; Zhu & Gupta 2017, sec. 3, update the masks every 100 training steps."""


def cubic(progress: float, *, start: float, end: float, final: float, initial: float = 0.0) -> float:
    """The share that is gone at `progress`, all in [0, 1] and `start` < `end`."""
    return final + (initial - final) * (1 - ramp(progress, start, end)) ** 3


def ramp(progress: float, start: float, end: float) -> float:
    """How much of the way from `start` to `end` is done, in [0, 1]."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))
