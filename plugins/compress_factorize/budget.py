"""Ranks for a whole network within a budget of parameters, multiplications or any other cost.

Every layer has choices, each with a cost c and a loss d; the layer as it is has the loss 0. Wanted is

    minimise  sum over l of d_l(r_l),        sum over l of c_l(r_l) <= budget

Each layer's choices are reduced to the lower convex hull of the loss over the cost, on which a saved unit of cost
only grows dearer. The steps of all hulls, taken in the order of loss per saved unit of cost, give the best choice for
every cost that they pass (Shoham and Gersho 1988, Efficient bit allocation for an arbitrary set of quantizers). The
first that fits is taken, and what it leaves of the budget is then spent where it lowers the loss the most, also
on choices off the hull. Zhang, Zou, He, Sun 2016, Accelerating very deep convolutional networks for classification
and detection, sec. 2.4, choose ranks in this way, with d = -log(kept). Cost: O(n log n) for n choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Point:
    """A choice for a layer; `entry` is None where the layer stays."""

    cost: float
    loss: float
    entry: int | None


def spend(budget: float, layers: Mapping[str, Sequence[Point]]) -> dict[str, Point] | None:
    """The choice of each layer; None if the budget is too small.

    Args:
        budget: what all layers may cost together.
        layers: the choices of each layer, its own state first, by falling cost and rising loss.
    """
    steps = sorted(
        (_slope(before, after), index, path, after)
        for index, (path, points) in enumerate(layers.items())
        for before, after in pairwise(hull(points))
    )
    chosen = {path: points[0] for path, points in layers.items()}
    for _, _, path, after in steps:
        if _total(chosen) <= budget:
            break
        chosen[path] = after
    return _filled(chosen, budget, layers) if _total(chosen) <= budget else None


def least(layers: Mapping[str, Sequence[Point]]) -> float:
    """The smallest cost that all layers can have together."""
    return sum(min(point.cost for point in points) for points in layers.values())


def hull(points: Sequence[Point]) -> list[Point]:
    """The points, by falling cost, on the lower convex hull of the loss over the cost."""
    kept: list[Point] = []
    for point in points:
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def _filled(chosen: dict[str, Point], budget: float, layers: Mapping[str, Sequence[Point]]) -> dict[str, Point]:
    """Spend what is left of the budget, one layer after the other, where it lowers the loss the most."""
    while True:
        left = budget - _total(chosen)
        gains = [
            (chosen[path].loss - point.loss, -index, path, point)
            for index, (path, points) in enumerate(layers.items())
            for point in points
            if point.cost - chosen[path].cost <= left and point.loss < chosen[path].loss
        ]
        if not gains:
            return chosen
        _, _, path, point = max(gains, key=lambda gain: gain[:2])
        chosen = {**chosen, path: point}


def _total(chosen: Mapping[str, Point]) -> float:
    return sum(point.cost for point in chosen.values())


def _slope(before: Point, after: Point) -> float:
    return (after.loss - before.loss) / (before.cost - after.cost)
