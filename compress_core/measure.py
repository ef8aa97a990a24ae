"""Quality, bytes, MACs and counts of a network, as it would be deployed.

Timing is in `timing.py`: it needs several networks in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nan
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compress_core.data import Batch
from compress_core.errors import ModelError
from compress_core.files import MANIFEST, read_manifest
from compress_core.modes import evaluating, unfused
from compress_core.parts import Task
from compress_core.sharing import apart

CONFIDENCE = 0.95
RESAMPLES = 200
SLACK = 1e-9
"""Points that a quality may lie beyond its bound by rounding."""


@dataclass(frozen=True)
class Quality:
    """A task's metric with its 95 % interval, and what else the task measures."""

    name: str
    value: float
    low: float
    high: float
    examples: int
    higher_is_better: bool = True
    also: Mapping[str, float] = field(default_factory=dict, hash=False)
    """The task's further metrics by name; one that is undefined for these examples is not there."""

    def better_than(self, other: Quality | None) -> bool:
        """Whether this value is strictly better."""
        if other is None or other.value != other.value:
            return True
        return self.value > other.value if self.higher_is_better else self.value < other.value

    def points_below(self, other: Quality) -> float:
        """How many points this value is worse than another; below 0 if it is better.

        A point is a hundredth where more is better (accuracy, F1, R2: scales that end at 1), and one per cent of the
        other value where less is better (an error, which has no end).
        """
        if self.higher_is_better:
            return 100 * (other.value - self.value)
        lost = self.value - other.value
        if not other.value:
            return inf if lost > 0 else 0.0
        return 100 * lost / abs(other.value)

    def within(self, points: float, other: Quality) -> bool:
        """Whether this value is at most so many points worse than another."""
        return self.points_below(other) <= points + SLACK

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Counts:
    """What a network consists of. A multiply with its add is one MAC; a sparse MAC counts like any other."""

    parameters: int
    nonzero: int
    macs: int


@dataclass(frozen=True)
class Curve:
    """What a technique measured along a parameter, for the report."""

    name: str
    x: str
    """What the first number of each point is, with its unit."""
    y: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Metrics:
    """What is known of a step's result: measured on the files that would be deployed, and counted in the network."""

    quality: Quality
    bytes: int
    counts: Counts
    notes: tuple[str, ...] = ()
    """What the techniques said of their work."""
    curves: tuple[Curve, ...] = ()
    """What they measured on their way."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "quality": self.quality.to_dict(),
            "bytes": self.bytes,
            **asdict(self.counts),
            "notes": list(self.notes),
            "curves": [asdict(curve) for curve in self.curves],
        }


def forward_with(model: Callable[..., Any], task: Task, batch: Batch) -> Any:
    """Call a network, or an exported one, on a batch."""
    arguments, keywords = task.inputs(batch)
    return model(*arguments, **keywords)


@torch.no_grad()
def quality(model: Callable[..., Any], data: Iterable[Batch], task: Task) -> Quality:
    """The task's quality over batches, in eval mode; each module's own mode is restored.

    Raises:
        ModelError: the task's first metric, or an end of its interval, is not finite.
    """
    if isinstance(model, nn.Module):
        with evaluating(model):
            pairs = [
                (task.logits(forward_with(model, task, batch)).float().cpu(), task.target(batch).cpu())
                for batch in data
            ]
    else:
        pairs = [(task.logits(forward_with(model, task, batch)), task.target(batch)) for batch in data]
    logits, target = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    (name, metric), *others = task.metrics(logits).items()
    value = _value(metric, logits, target)
    if not isfinite(value):
        raise _undefined(name, value)
    low, high = wilson(value, len(target)) if task.proportion else bootstrap(metric, logits, target)
    if not isfinite(low) or not isfinite(high):
        raise _undefined(f"the interval of {name}", low if isfinite(high) else high)
    further = {other: _value(measure, logits, target) for other, measure in others}
    also = {other: number for other, number in further.items() if isfinite(number)}
    return Quality(name, value, low, high, len(target), bool(metric.higher_is_better), also)


def _value(metric: Any, logits: Tensor, target: Tensor) -> float:
    """A metric's value; NaN where it refuses the examples, as r2 does with a single one."""
    try:
        return float(metric(logits, target))
    except ValueError:
        return nan


def _undefined(what: str, value: float) -> ModelError:
    return ModelError(
        f"{what} is {value}",
        where="quality",
        mend="look for outputs that are not finite, or for examples that this metric is not defined for: "
        "too few, or all with one label",
    )


def wilson(share: float, examples: int) -> tuple[float, float]:
    """The score interval of a share of independent examples (Wilson 1927, eq. 4)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    center = share + z * z / (2 * examples)
    spread = z * (share * (1 - share) / examples + z * z / (4 * examples**2)) ** 0.5
    scale = 1 + z * z / examples
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def bootstrap(metric: Any, logits: Tensor, target: Tensor) -> tuple[float, float]:
    """The percentile interval over seeded resamples of the examples (Efron 1979)."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(RESAMPLES):
        chosen = torch.randint(len(target), (len(target),), generator=generator)
        metric.reset()
        values.append(float(metric(logits[chosen], target[chosen])))
    tail = (1 - CONFIDENCE) / 2
    found = torch.quantile(
        torch.tensor(values, dtype=torch.float64), torch.tensor([tail, 1 - tail], dtype=torch.float64)
    )
    return float(found[0]), float(found[1])


def counts(model: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]]) -> Counts:
    """Parameters, parameters that are not zero, and MACs for one example.

    Tensors that hold weights in another form count as the weights that they stand for, if their module has the method
    `stands_for`.
    """
    arguments, keywords = example
    size = next(len(value) for value in _tensors((arguments, keywords)))
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the fused attention of the CPU
    with evaluating(model), unfused(), plain, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*arguments, **keywords)
    parameters = nonzero = 0
    for weight in _weights(model):
        parameters += weight.numel()
        nonzero += int(torch.count_nonzero(weight))
    return Counts(parameters, nonzero, macs=counter.get_total_flops() // (2 * size))


@torch.no_grad()
def _weights(model: nn.Module) -> Iterator[Tensor]:
    """The parameters, and what other tensors stand for, each shared one once."""
    seen: set[int] = set()
    for module in model.modules():
        stands_for = getattr(module, "stands_for", None)
        meant: Mapping[str, Tensor] = stands_for() if callable(stands_for) else {}
        own = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
        for name in {**own, **meant}:
            tensor = own[name] if name in own else module.get_buffer(name)
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield meant.get(name, tensor)


def _tensors(value: Any) -> Iterable[Tensor]:
    match value:
        case Tensor():
            yield value
        case dict():
            for entry in value.values():
                yield from _tensors(entry)
        case tuple() | list():
            for entry in value:
                yield from _tensors(entry)


def tensor_bytes(model: nn.Module) -> int:
    """The bytes of a network's tensors in one safetensors file, each shared one once."""
    from safetensors.torch import save as to_bytes

    unique = {id(tensor): (name, tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    return len(to_bytes(apart(dict(unique.values()))))


def shipped_bytes(folder: Path) -> int:
    """The bytes of the files that would be shipped, as they lie on disk.

    A model needs its manifest to be rebuilt; an exported file runs without ours.
    """
    manifest = read_manifest(folder)
    files = sum(int(entry["bytes"]) for entry in manifest["files"].values())
    return files + ((folder / MANIFEST).stat().st_size if manifest["kind"] == "model" else 0)
