"""Which layers are replaced, and with which ranks: by energy, by a budget, by a given rank, by EVBMF.

The loss of a layer's candidate is -log kept: of all choices that fit a budget, the one with the largest product of the
kept shares wins (Zhang, Zou, He, Sun 2016, sec. 2.4). It is the relative error for small errors and grows without
bound for large ones, so that no layer is cut to nothing because its neighbours are dear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, log

import torch
from torch import nn

from compress_core.errors import ModelError
from compress_core.run import Run
from compress_factorize.budget import Point, least, spend
from compress_factorize.evbmf import evbmf_rank
from compress_factorize.inputs import Inputs, inputs_of
from compress_factorize.layers import Found
from compress_factorize.methods import method_of
from compress_factorize.pieces import Area, Candidates, Factors, Layer, Method, saving, weight_of, worthwhile

_SLACK = 1e-12
"""Of shares: what a division and a multiplication may round away."""
WIDEST = 8192
"""Numbers under a weight; the moments of more would take over half a gibibyte, and many minutes to decompose."""
SAVES_NOTHING = "would save nothing"
NEEDED = {"parameters": "needs its parameters", "macs": "needs its multiplications", "latency": "needs its time"}


@dataclass(frozen=True, eq=False)
class Option:
    """A layer that may be replaced, and how."""

    layer: Layer
    area: Area
    method: Method
    inputs: Inputs | None
    """What is known of what it sees; None where its weight is fitted."""
    known: dict[tuple[int, bool], Candidates] = field(default_factory=dict)
    """The candidates that were computed before."""

    def candidates(self, multiple: int, of: str) -> Candidates:
        """What it may become, by rising cost."""
        key = (multiple, of == "parameters")
        if key not in self.known:
            self.known[key] = worthwhile(self.method, self.layer, self.area, multiple, inputs=self.inputs, of=of)
        return self.known[key]

    def factors(self, ranks: tuple[int, ...]) -> Factors:
        """What it becomes with these ranks."""
        return self.method.factors(self.layer, ranks, self.inputs)

    def cost(self, of: str) -> int:
        """What it costs as it is."""
        parameters, macs = self.method.dense(self.layer, self.area)
        return parameters if of == "parameters" else macs


Ranks = dict[str, tuple[int, ...]]
"""The ranks of each layer that is replaced."""


def options(model: nn.Module, run: Run, found: Found, method: str, *, from_data: bool) -> dict[str, Option]:
    """How each layer may be replaced; with `from_data` one pass over the calibration batches tells what it sees.

    Raises:
        ModelError: the inputs of a layer are not finite.
    """
    methods = {path: method_of(layer, method) for path, layer in found.layers.items()}
    seeing = {path: layer for path, layer in found.layers.items() if from_data and methods[path].sees_inputs}
    if wide := [path for path, layer in seeing.items() if layer.weight[0].numel() > WIDEST]:
        run.say(f"factorize: fitted by the weight, which takes more than {WIDEST:,} numbers at once: {', '.join(wide)}")
        seeing = {path: layer for path, layer in seeing.items() if path not in wide}
    inputs = inputs_of(model, run, seeing) if seeing else {}
    for path, entry in inputs.items():
        if not torch.isfinite(entry.moment).all():
            raise ModelError("its inputs are not finite", where=path, mend="train again with a smaller learning rate")
    return {
        path: Option(layer, found.areas[path], methods[path], _telling(inputs.get(path), layer))
        for path, layer in found.layers.items()
    }


def _telling(inputs: Inputs | None, layer: Layer) -> Inputs | None:
    """The inputs, unless the layer answers nothing to them."""
    return inputs if inputs is not None and inputs.energy(weight_of(layer)) > 0 else None


def by_energy(layers: Mapping[str, Option], energy: float, multiple: int, of: str) -> Ranks:
    """The cheapest ranks of each layer that keep at least a share."""
    chosen: Ranks = {}
    for path, option in layers.items():
        found = option.candidates(multiple, of)
        if (entry := found.cheapest(energy, of)) is not None:
            chosen[path] = tuple(found.ranks[entry].tolist())
    return chosen


class Budget:
    """Ranks within a share of what all layers cost, for any share."""

    def __init__(self, layers: Mapping[str, Option], multiple: int, of: str) -> None:
        """Compute what every candidate keeps and costs."""
        self.of = of
        self.candidates = {path: option.candidates(multiple, of) for path, option in layers.items()}
        self.points = {path: _points(found, layers[path].cost(of), of) for path, found in self.candidates.items()}
        self.full = sum(points[0].cost for points in self.points.values())

    @property
    def smallest(self) -> float:
        """The least share in reach."""
        return least(self.points) / self.full if self.full else 1.0

    def ranks(self, share: float) -> Ranks:
        """The ranks that keep the most within a share.

        Raises:
            ModelError: the share is out of reach; it says what could be reached.
        """
        chosen = spend(share * self.full * (1 + _SLACK), self.points)
        if chosen is None:
            of = "multiplications" if self.of == "macs" else "parameters"
            enough = ceil(self.smallest * 1000) / 1000
            raise ModelError(
                f"these layers cannot get by with {share:.3g} of their {of}; the least is {enough:.3g}",
                mend="give a larger `ratio`, or skip fewer layers",
            )
        return {
            path: tuple(self.candidates[path].ranks[point.entry].tolist())
            for path, point in chosen.items()
            if point.entry is not None
        }


def _points(found: Candidates, full: int, of: str) -> list[Point]:
    cost = found.cost(of)
    return [
        Point(full, 0.0, None),
        *(
            Point(int(cost[entry]), -log(min(1.0, float(found.kept[entry]))), entry)
            for entry in range(len(found) - 1, -1, -1)
        ),
    ]


def by_rank(layers: Mapping[str, Option], rank: int) -> Ranks:
    """One rank for all layers that it makes cheaper.

    Raises:
        ModelError: it is above the full rank of a layer.
    """
    chosen: Ranks = {}
    for path, option in layers.items():
        matrices = option.method.unfoldings(option.layer)
        full = min(min(matrix.shape) for matrix in matrices)
        if rank > full:
            raise ModelError(
                f"rank {rank} is above its full rank, {full}",
                where=path,
                mend=f"give a `rank` of at most {full}, or put {path!r} into `skip`",
            )
        wanted = (rank,) * len(matrices)
        if _saves(option, wanted, 1):
            chosen[path] = wanted
    return chosen


def by_evbmf(layers: Mapping[str, Option], multiple: int, found: Found) -> Ranks:
    """The ranks of the weights that stand out of the noise in them; a layer that is all noise stays and is noted."""
    chosen: Ranks = {}
    for path, option in layers.items():
        matrices = option.method.unfoldings(option.layer)
        ranks = [evbmf_rank(matrix) for matrix in matrices]
        if not all(ranks):
            found.leave(path, "has no rank that stands out of its noise")
            continue
        wanted = tuple(
            min(-(-rank // multiple) * multiple, *matrix.shape) for rank, matrix in zip(ranks, matrices, strict=True)
        )
        if _saves(option, wanted, multiple):
            chosen[path] = wanted
    return chosen


def _saves(option: Option, ranks: tuple[int, ...], multiple: int) -> bool:
    """Whether a layer gets cheaper with these ranks."""
    found = saving(option.method, option.layer, option.area, multiple, option.inputs)
    return bool((found.ranks == torch.tensor(ranks)).all(dim=1).any())
