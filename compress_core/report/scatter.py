"""The geometry of a scatter plot: quality, with its interval, against a cost on a logarithmic axis.

Pure functions from figures to coordinates in pixels; the template of the page only prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap
from math import ceil, floor, log10

from compress_core.report.pareto import pareto_front

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 20, 52
LETTER = 6.6
"""Width of a letter of a label, about; so that labels can be kept apart without a browser."""
LINE = 14
"""Height of a label."""
NARROWEST = 0.01
"""The smallest range of qualities, as a share of the largest: figures of four digits still tell its ticks apart."""
REACH = 9
"""Distance of a label from the middle of its mark."""


@dataclass(frozen=True)
class Point:
    """One network on the plot."""

    name: str
    cost: float
    """Above 0."""
    value: float
    low: float
    high: float
    dense: bool = False
    """Whether others are compared with it."""
    export: bool = False
    title: str = ""
    """What is shown when the mark is pointed at."""


@dataclass(frozen=True)
class Tick:
    """A line of the grid with its figure."""

    at: float
    text: str


@dataclass(frozen=True)
class Box:
    """A rectangle: `x` and `y` are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(0.0, across) * max(0.0, down)


@dataclass(frozen=True)
class Mark:
    """Where a point and its label are drawn."""

    point: Point
    x: float
    y: float
    low: float
    """The y of the interval's lower end."""
    high: float
    label: Box
    on_front: bool


@dataclass(frozen=True)
class Scatter:
    """All that is drawn."""

    frame: Box
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    front: str
    """The SVG path of the Pareto front: a staircase, flat while more cost buys nothing."""
    width: int = WIDTH
    height: int = HEIGHT


def scatter(
    points: Sequence[Point],
    *,
    higher_is_better: bool = True,
    x_text: Callable[[float], str] = "{:g}".format,
    y_text: Callable[[float], str] = "{:g}".format,
) -> Scatter:
    """Lay a plot out.

    Args:
        points: at least one.
        higher_is_better: whether a greater value is the better one.
        x_text: how a cost is written.
        y_text: how a value is written.
    """
    frame = Box(LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    costs = widened([log10(point.cost) for point in points], 0.08, least=0.3)
    ends = [end for point in points for end in (point.low, point.high)]
    values = widened(ends, 0.06, least=NARROWEST * (max(map(abs, ends)) or 1.0))
    across = scaled(costs, frame.x, frame.x + frame.width)
    down = scaled(values, frame.y + frame.height, frame.y)
    sign = 1 if higher_is_better else -1
    front = pareto_front([(point.cost, sign * point.value) for point in points])
    places = [(across(log10(point.cost)), down(point.value)) for point in points]
    bars = [(down(point.low), down(point.high)) for point in points]
    corners = [places[index] for index in front]
    lines = [*starmap(_upright, zip(places, bars, strict=True)), *_steps(corners)]
    labels = place_labels([point.name for point in points], places, lines, frame)
    return Scatter(
        frame=frame,
        x_ticks=tuple(Tick(across(log10(cost)), x_text(cost)) for cost in log_ticks(10 ** costs[0], 10 ** costs[1])),
        y_ticks=tuple(Tick(down(value), y_text(value)) for value in linear_ticks(*values)),
        marks=tuple(
            Mark(point, *place, *bar, label, index in front)
            for index, (point, place, bar, label) in enumerate(zip(points, places, bars, labels, strict=True))
        ),
        front=staircase(corners),
    )


def widened(values: Iterable[float], share: float, *, least: float) -> tuple[float, float]:
    """The range of values with a margin on both sides; `least` is the narrowest range before the margin."""
    known = list(values)
    low, high = min(known), max(known)
    missing = max(0.0, least - (high - low)) / 2
    low, high = low - missing, high + missing
    margin = share * (high - low)
    return low - margin, high + margin


def log_ticks(low: float, high: float) -> list[float]:
    """Round figures between two bounds above 0: 1, 2 and 5 of every decade, only 1 over many decades.

    Where fewer than two of these lie between the bounds, they are evenly spaced.
    """
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1.0,) if log10(high / low) > 3 else (1.0, 2.0, 5.0)
    found = [step * 10.0**decade for decade in decades for step in steps]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) > 1 else linear_ticks(low, high)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most so many round figures between two bounds."""
    rough = (high - low) / most
    scale = 10 ** floor(log10(rough))
    step = next(width * scale for width in (1, 2, 2.5, 5, 10, 20) if width * scale >= rough)
    return [float(f"{index * step:.12g}") for index in range(ceil(low / step), floor(high / step) + 1)]


def staircase(places: Sequence[tuple[float, float]]) -> str:
    """The SVG path through the places of a front, ordered by cost."""
    if not places:
        return ""
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    return path + "".join(f"H{after[0]:.1f}V{after[1]:.1f}" for _, after in pairwise(places))


def place_labels(
    names: Sequence[str], places: Sequence[tuple[float, float]], lines: Iterable[Box], frame: Box
) -> list[Box]:
    """Put every label beside its mark, where it covers the least of other labels, marks and lines.

    Greedy, in the order of the names: each label takes the best of its places, those that come first if several
    are free.
    """
    taken = [Box(x - 6, y - 6, 12, 12) for x, y in places] + list(lines)
    found: list[Box] = []
    for name, (x, y) in zip(names, places, strict=True):
        choices = list(_around(x, y, LETTER * len(name)))
        found.append(min(choices, key=lambda box: _cost(box, [*taken, *found], frame)))
    return found


def _upright(place: tuple[float, float], bar: tuple[float, float]) -> Box:
    """What the line of an interval covers."""
    return Box(place[0] - 1, min(bar), 2, abs(bar[0] - bar[1]))


def _steps(corners: Sequence[tuple[float, float]]) -> Iterable[Box]:
    """What the lines of a staircase cover."""
    for (x, y), (after, above) in pairwise(corners):
        yield Box(x, y - 1, after - x, 2)
        yield Box(after - 1, min(y, above), 2, abs(y - above))


def _around(x: float, y: float, width: float) -> Iterable[Box]:
    """Places for a label near a mark, the best first."""
    middle = y - LINE / 2
    for shift in (0, -LINE, LINE, -2 * LINE, 2 * LINE, -3 * LINE, 3 * LINE):
        yield Box(x + REACH, middle + shift, width, LINE)
        yield Box(x - REACH - width, middle + shift, width, LINE)
    yield Box(x - width / 2, y - REACH - LINE, width, LINE)
    yield Box(x - width / 2, y + REACH, width, LINE)


def _cost(box: Box, taken: Iterable[Box], frame: Box) -> float:
    inside = box.overlap(frame)
    return sum(box.overlap(other) for other in taken) + 4 * (box.width * box.height - inside)


def scaled(bounds: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    """Maps the bounds to `start` and `end`, and what lies between in proportion."""
    low, high = bounds
    return lambda value: start + (value - low) / (high - low) * (end - start)
