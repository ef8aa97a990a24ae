"""The Pareto front: the points that no other beats in one respect without losing in the other.

A point is dominated if another one costs no more and is worth no less, and is strictly better in one of the two
(Miettinen 1999, Nonlinear Multiobjective Optimization, sec. 2.2). Cost: one sort.
"""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that are not dominated, by rising cost.

    Args:
        points: pairs of a cost, of which less is better, and a worth, of which more is better.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front
