"""A figure: a value beside its peer's, and whether it reaches its goal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured value. Goals are in the unit of the value: a wanted speed-up is a figure in `times`."""

    name: str
    """What was measured, in words; unique within its benchmark."""
    value: float
    unit: str
    """`%`, `points`, `ms`, `s`, `bytes`, `times`, `weights`; `times` for "so many times smaller" or faster."""
    higher_is_better: bool
    peer: str
    """What stands beside it, by name: another library, or the dense network in the same runtime."""
    peer_value: float | None = None
    """The peer's value in the same unit, from the same run."""
    goal: float | None = None
    """What the value has to reach: at least if higher is better, else at most. None: it has no goal."""
    low: float | None = None
    high: float | None = None
    """The interval of the value, if it has one; `note` says which."""
    seeds: tuple[int, ...] = ()
    """The seeds whose mean it is; none if nothing is random."""
    note: str = ""
    """What a reader has to know: the interval, the worst seed, what was left out."""

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer's: above 1 is better, whichever direction is."""
        if not self.peer_value or not self.value:
            return None
        return self.value / self.peer_value if self.higher_is_better else self.peer_value / self.value

    @property
    def met(self) -> bool | None:
        """Whether it reaches its goal; None if it has none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.higher_is_better else self.value <= self.goal

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"seeds": list(self.seeds), "ratio": self.ratio, "met": self.met}
