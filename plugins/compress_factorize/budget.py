"""Ranks for a whole network within a budget of parameters.

Of all choices that fit, wanted is the one with the largest product over the layers of what each keeps,

    E = prod over l of kept_l(r_l),        sum over l of parameters_l(r_l) <= budget

found greedily: the next rank to go is the one with the smallest relative loss of E per parameter that it saves.
Source: Zhang, Zou, He, Sun 2016, Accelerating very deep convolutional networks for classification and
detection, sec. 2.4. A layer's choices are first reduced to the concave hull of log kept over its parameters,
on which losses per parameter only grow, so that the greedy choice is the best one for what it spends; the last
layer to be cut then takes the best of its ranks that still fits. Cost: O(n log n) for n choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import log

from compress_factorize.pieces import Candidates


@dataclass(frozen=True)
class Point:
    """A choice for a layer; `entry` is None where the layer stays."""

    parameters: int
    loss: float
    """-log kept."""
    entry: int | None


def spend(budget: float, layers: Mapping[str, Candidates], full: Mapping[str, int]) -> dict[str, int] | None:
    """The entry of each layer that is replaced; None if the budget is too small.

    Args:
        budget: parameters that all layers may have together.
        layers: the worthwhile candidates of each layer.
        full: the parameters of each layer as it is.
    """
    points = {path: _points(found, full[path]) for path, found in layers.items()}
    steps = sorted(
        (_slope(before, after), index, path, before, after)
        for index, (path, entries) in enumerate(points.items())
        for before, after in pairwise(hull(entries))
    )
    chosen: dict[str, int] = {}
    total = sum(full.values())
    for _, _, path, before, after in steps:
        if total <= budget:
            return chosen
        others = total - before.parameters
        fitting = [point for point in points[path] if others + point.parameters <= budget]
        best = min(fitting, key=lambda point: point.loss, default=after)
        assert best.entry is not None
        chosen[path] = best.entry
        total = others + best.parameters
    return chosen if total <= budget else None


def hull(points: list[Point]) -> list[Point]:
    """The points, by falling parameters, on the lower convex hull of the loss over the parameters."""
    kept: list[Point] = []
    for point in points:
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def _points(found: Candidates, full: int) -> list[Point]:
    entries = range(len(found) - 1, -1, -1)
    return [
        Point(full, 0.0, None),
        *(Point(int(found.parameters[entry]), -log(float(found.kept[entry])), entry) for entry in entries),
    ]


def _slope(before: Point, after: Point) -> float:
    return (after.loss - before.loss) / (before.parameters - after.parameters)
