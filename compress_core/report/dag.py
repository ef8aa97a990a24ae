"""The geometry of the pipeline's graph: steps in columns by their depth, edges that keep clear of other steps.

The layered drawing of Sugiyama, Tagawa and Toda (1981): a step lies one column after the last of what it needs;
an edge over several columns gets a lane in each of them; steps and lanes of a column are ordered by the mean
place of their neighbours, sweeping to and fro. Pure functions from names to coordinates in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

BOX_WIDTH, BOX_HEIGHT = 150, 50
LANE_HEIGHT = 12
COLUMN_GAP, ROW_GAP = 46, 20
MARGIN = 12
SWEEPS = 4
PORT = 9
"""How far the teacher's edge is kept from the input's."""
NAME_LETTERS, LETTERS = 19, 23
"""How many letters of a step's name and of its techniques fit into its box."""


@dataclass(frozen=True)
class Node:
    """What is known of a step before it is drawn."""

    name: str
    input: str | None = None
    teacher: str | None = None
    text: str = ""
    """What it uses."""
    export: bool = False
    dense: bool = False


@dataclass(frozen=True)
class Placed:
    """A step's box: `x` and `y` are its upper left corner."""

    node: Node
    x: float
    y: float
    name: str
    """Its name, cut to the width of the box."""
    text: str
    """What it uses, cut likewise."""


@dataclass(frozen=True)
class Edge:
    """A line from a step to one that needs it."""

    source: str
    target: str
    teaches: bool
    path: str


@dataclass(frozen=True)
class Graph:
    """All that is drawn."""

    width: float
    height: float
    boxes: tuple[Placed, ...]
    edges: tuple[Edge, ...]
    box_width: int = BOX_WIDTH
    box_height: int = BOX_HEIGHT


@dataclass(frozen=True)
class _Lane:
    """The place of a long edge in a column that it passes."""

    edge: int
    column: int


_Item = str | _Lane


def graph(nodes: Sequence[Node]) -> Graph:
    """Lay a pipeline out; the nodes come in an order in which they can run."""
    columns = depths(nodes)
    lines = [(source, node.name, False) for node in nodes if (source := node.input) is not None]
    lines += [(source, node.name, True) for node in nodes if (source := node.teacher) is not None]
    routes = [_route(index, source, target, columns) for index, (source, target, _) in enumerate(lines)]
    order = _ordered(_filled(nodes, columns, routes), routes)
    tall = max(_height(column) for column in order)
    centers = {item: center for column in order for item, center in _stacked(column, tall).items()}
    edges = tuple(
        Edge(source, target, teaches, _path(route, columns, centers, PORT if teaches else 0))
        for (source, target, teaches), route in zip(lines, routes, strict=True)
    )
    boxes = tuple(
        Placed(
            node,
            _left(columns[node.name]),
            centers[node.name] - BOX_HEIGHT / 2,
            shortened(node.name, NAME_LETTERS),
            shortened(node.text, LETTERS),
        )
        for node in nodes
    )
    width = _left(len(order) - 1) + BOX_WIDTH + MARGIN
    return Graph(width, tall + 2 * MARGIN, boxes, edges)


def depths(nodes: Sequence[Node]) -> dict[str, int]:
    """The column of each step: one more than the greatest of what it needs."""
    found: dict[str, int] = {}
    for node in nodes:
        needs = [found[name] for name in (node.input, node.teacher) if name is not None]
        found[node.name] = 1 + max(needs) if needs else 0
    return found


def shortened(text: str, letters: int) -> str:
    """A text that fits, with an ellipsis where it was cut."""
    return text if len(text) <= letters else text[: letters - 1].rstrip(" +") + "…"


def _route(index: int, source: str, target: str, columns: Mapping[str, int]) -> list[_Item]:
    lanes = [_Lane(index, column) for column in range(columns[source] + 1, columns[target])]
    return [source, *lanes, target]


def _filled(nodes: Sequence[Node], columns: Mapping[str, int], routes: Sequence[list[_Item]]) -> list[list[_Item]]:
    """Steps and lanes, column by column."""
    found: list[list[_Item]] = [[] for _ in range(1 + max(columns.values()))]
    for node in nodes:
        found[columns[node.name]].append(node.name)
    for route in routes:
        for item in route:
            if isinstance(item, _Lane):
                found[item.column].append(item)
    return found


def _ordered(columns: list[list[_Item]], routes: Sequence[list[_Item]]) -> list[list[_Item]]:
    """Each column sorted by the mean place of its neighbours in the column before, then after, and again."""
    before: dict[_Item, list[_Item]] = {}
    after: dict[_Item, list[_Item]] = {}
    for route in routes:
        for one, other in pairwise(route):
            after.setdefault(one, []).append(other)
            before.setdefault(other, []).append(one)
    for sweep in range(SWEEPS):
        forwards = sweep % 2 == 0
        neighbours = before if forwards else after
        sequence = range(len(columns)) if forwards else range(len(columns) - 1, -1, -1)
        for index in sequence:
            places = {item: place / max(1, len(column) - 1) for column in columns for place, item in enumerate(column)}
            columns[index].sort(key=lambda item: _mean([places[other] for other in neighbours.get(item, [item])]))
    return columns


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _height(column: Sequence[_Item]) -> float:
    return sum(map(_tall, column)) + ROW_GAP * (len(column) - 1)


def _tall(item: _Item) -> float:
    return LANE_HEIGHT if isinstance(item, _Lane) else BOX_HEIGHT


def _stacked(column: Sequence[_Item], height: float) -> dict[_Item, float]:
    """The middle of every item of a column, the whole column centred."""
    y = MARGIN + (height - _height(column)) / 2
    found: dict[_Item, float] = {}
    for item in column:
        found[item] = y + _tall(item) / 2
        y += _tall(item) + ROW_GAP
    return found


def _left(column: int) -> float:
    return MARGIN + column * (BOX_WIDTH + COLUMN_GAP)


def _path(route: Sequence[_Item], columns: Mapping[str, int], centers: Mapping[_Item, float], shift: float) -> str:
    """A curve from box to box that runs level through every column it passes."""
    first, *lanes, last = route
    x, y = _left(columns[str(first)]) + BOX_WIDTH, centers[first] + shift
    path = f"M{x:.1f} {y:.1f}"
    for lane in lanes:
        assert isinstance(lane, _Lane)
        path += _curve((x, y), (_left(lane.column), centers[lane])) + f"H{_left(lane.column) + BOX_WIDTH:.1f}"
        x, y = _left(lane.column) + BOX_WIDTH, centers[lane]
    return path + _curve((x, y), (_left(columns[str(last)]), centers[last] + shift))


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    middle = (start[0] + end[0]) / 2
    return f"C{middle:.1f} {start[1]:.1f} {middle:.1f} {end[1]:.1f} {end[0]:.1f} {end[1]:.1f}"
