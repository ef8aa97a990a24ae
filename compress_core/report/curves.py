"""The geometry of small line plots: what techniques measured along a parameter, one plot per curve.

Pure functions from figures to coordinates in pixels; the template of the page only prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compress_core.report.scatter import NARROWEST, Box, Tick, linear_ticks, scaled, widened

WIDTH, HEIGHT = 320, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
TICKS = 4
SMALLEST = 1e-30
"""Curves nearer to zero are drawn as zeros: nothing that is measured is so small."""


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn."""

    frame: Box
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    path: str
    """The SVG path through the points, by rising x."""
    marks: tuple[tuple[float, float], ...]
    width: int = WIDTH
    height: int = HEIGHT


def line(points: Sequence[tuple[float, float]]) -> Line:
    """Lay a curve out; `points` has at least one."""
    frame = Box(LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    along, up = _range([x for x, _ in points]), _range([y for _, y in points])
    across = scaled(along, frame.x, frame.x + frame.width)
    down = scaled(up, frame.y + frame.height, frame.y)
    marks = tuple((across(x), down(y)) for x, y in sorted(points))
    return Line(
        frame=frame,
        x_ticks=_ticks(along, across),
        y_ticks=_ticks(up, down),
        path=f"M{marks[0][0]:.1f} {marks[0][1]:.1f}" + "".join(f"L{x:.1f} {y:.1f}" for _, (x, y) in pairwise(marks)),
        marks=marks,
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    largest = max(map(abs, values))
    return widened(values, 0.06, least=NARROWEST * (largest if largest > SMALLEST else 1.0))


def _ticks(bounds: tuple[float, float], place: Callable[[float], float]) -> tuple[Tick, ...]:
    return tuple(Tick(place(value), f"{value:g}") for value in linear_ticks(*bounds, most=TICKS))
