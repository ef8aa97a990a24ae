"""Which targets, allocations and rounds of `prune` fit its other parameters; read without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_core.catalog import catalog

if TYPE_CHECKING:
    from compress_prune import Prune

ROUNDS = frozenset({"iterative", "lottery", "progressive"})
"""The schedules that train several times."""
CUT = ("channel", "head")
"""The granularities whose number follows from a target."""
BELONGS = {
    "rounds": ("iterative", "lottery"),
    "spacing": ("iterative", "lottery"),
    "rewind": ("lottery",),
    "max_loss": ("progressive",),
    "step": ("progressive",),
    "smallest_step": ("progressive",),
}
"""The schedules to which a parameter belongs."""


def check_target(technique: Prune) -> None:
    """Raise a `ValueError` if the target does not fit what goes."""
    if technique.of != "count" and technique.granularity not in CUT:
        kinds = " or ".join(f"`granularity: {kind}`" for kind in CUT)
        raise ValueError(f"`of: {technique.of}` is for channels and heads: add {kinds}, or leave it out")
    if technique.of != "latency":
        for name in ("runtime", "batch"):
            if _given(technique, name):
                raise ValueError(f"`{name}` says how time is measured: add `of: latency`, or leave it out")
    elif technique.runtime != "torch" and technique.runtime not in catalog().exporters:
        known = ["torch", *catalog().exporters]
        advice = catalog().unknown("exporter", technique.runtime, known)
        raise ValueError(f"there is no runtime {technique.runtime!r}: {advice}")
    early = (technique.of == "latency" and technique.allocation == "global") or technique.allocation == "sensitivity"
    if early and catalog().criteria[technique.ranked_by].needs_epochs:
        raise ValueError(
            f"the criterion {technique.ranked_by!r} knows nothing before the training, where shares are measured: "
            "use `allocation: uniform`, or another criterion"
        )


def check_rounds(technique: Prune) -> None:
    """Raise a `ValueError` if parameters of rounds contradict the others."""
    for name, schedules in BELONGS.items():
        if _given(technique, name) and technique.schedule not in schedules:
            belongs = " or ".join(f"`schedule: {schedule}`" for schedule in schedules)
            raise ValueError(f"`{name}` belongs to {belongs}: add it, or leave `{name}` out")
    if technique.schedule not in ROUNDS:
        return
    if technique.pattern:
        raise ValueError(f"the pattern {technique.pattern!r} is no share that rounds could raise: use another schedule")
    if catalog().criteria[technique.ranked_by].needs_epochs:
        raise ValueError(
            f"the criterion {technique.ranked_by!r} knows nothing before a training, where each round prunes: "
            "use `schedule: gradual`"
        )
    if technique.schedule == "progressive" and technique.max_loss is None:
        raise ValueError("`max_loss` is missing: how many points of the quality may be lost, as in `max_loss: 1`")
    if technique.smallest_step > technique.step:
        raise ValueError(f"`smallest_step` ({technique.smallest_step}) is larger than `step` ({technique.step})")


def _given(technique: Prune, name: str) -> bool:
    """Whether a parameter is another than its default."""
    return bool(getattr(technique, name) != type(technique).model_fields[name].default)
