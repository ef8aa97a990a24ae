"""Which parameters of `prune` fit together: what can be said before any network is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_core.catalog import catalog
from compress_prune.conditions import ROUNDS, check_rounds, check_target

if TYPE_CHECKING:
    from compress_prune import Prune

IN_PLACE = frozenset({"weight", "block", "kernel"})
"""The granularities whose weights become zero and keep their place."""


def check(technique: Prune) -> None:
    """Raise a `ValueError` if parameters contradict one another."""
    _check_amount(technique)
    _check_criterion(technique)
    _check_granularity(technique)
    _check_schedule(technique)
    check_target(technique)
    check_rounds(technique)
    if technique.start >= technique.end:
        raise ValueError(f"`start` ({technique.start}) has to lie before `end` ({technique.end})")


def _check_amount(technique: Prune) -> None:
    if technique.pattern:
        from compress_prune.notation import parsed

        parsed(technique.pattern)
        if technique.granularity != "weight":
            raise ValueError("`pattern` is one of single weights: leave `granularity` out")
        if technique.amount is not None:
            raise ValueError(f"the pattern {technique.pattern!r} says how much goes: leave `amount` out")
        if technique.allocation != "uniform":
            raise ValueError(f"the pattern {technique.pattern!r} holds in every layer: leave `allocation` out")
    elif technique.amount is None:
        raise ValueError("`amount` is missing: the share that goes, as in `amount: 0.5`, or a `pattern: 2:4`")


def _check_criterion(technique: Prune) -> None:
    known = catalog().criteria
    if technique.ranked_by not in known:
        advice = catalog().unknown("criterion", technique.ranked_by, known)
        raise ValueError(f"there is no criterion {technique.ranked_by!r}: {advice}")
    criterion = known[technique.ranked_by]
    for can, what, granularities in (
        (criterion.scores_weights, "weights", IN_PLACE),
        (criterion.scores_channels, "channels", {"channel", "head"}),
        (criterion.scores_modules, "blocks", {"depth"}),
    ):
        if technique.granularity in granularities and not can():
            fitting = ", ".join(sorted(name for name, kind in known.items() if getattr(kind, can.__name__)()))
            instead = "channel" if criterion.scores_channels() else "depth"
            raise ValueError(
                f"the criterion {technique.ranked_by!r} does not rank {what}: "
                f"use one of {fitting}, or `granularity: {instead}`"
            )
    if criterion.needs_epochs and technique.granularity == "depth":
        raise ValueError(
            f"the criterion {technique.ranked_by!r} knows nothing before the training, where blocks are chosen: "
            "use another criterion, as in `criterion: influence`"
        )
    if criterion.needs_epochs and technique.schedule in {"one-shot", "rigl"}:
        raise ValueError(f"the criterion {technique.ranked_by!r} learns from training: use `schedule: gradual`")


def _check_schedule(technique: Prune) -> None:
    schedule = technique.schedule
    if schedule in {"one-shot", *ROUNDS} and (technique.start, technique.end) != (0.0, 0.5):
        raise ValueError(f"a {schedule} schedule has no `start` and `end`: leave them out, or use `schedule: gradual`")
    if schedule in {"surgery", "rigl"} and (technique.granularity != "weight" or technique.pattern):
        raise ValueError(f"`{schedule}` brings back single weights: leave `granularity` and `pattern` out")
    if technique.density and schedule in {"surgery", "rigl"}:
        raise ValueError(f"`density` empties rows and columns, which `{schedule}` fills again: leave one of them out")
    if schedule != "rigl" and (technique.every, technique.regrow) != (100, 0.3):
        raise ValueError("`every` and `regrow` exchange weights: add `schedule: rigl`, or leave them out")


def _check_granularity(technique: Prune) -> None:
    if technique.granularity in IN_PLACE and technique.multiple != 1:
        raise ValueError("`multiple` counts channels: add `granularity: channel`, or leave it out")
    if technique.density and (technique.granularity != "weight" or technique.pattern):
        raise ValueError("`density` ranks single weights: leave `granularity` and `pattern` out, or `density`")
    if technique.density and technique.ranked_by == "movement":
        raise ValueError("`density` multiplies scores, and those of `movement` have a sign: use another criterion")
    if technique.granularity == "depth" and technique.allocation != "uniform":
        raise ValueError("blocks are ranked over the whole network anyway: leave `allocation` out")
    if technique.granularity == "depth" and technique.multiple != 1:
        raise ValueError("`multiple` counts channels: add `granularity: channel`, or leave it out")
    if technique.granularity == "depth" and technique.schedule not in {
        "gradual",
        "one-shot",
        "iterative",
        "progressive",
    }:
        raise ValueError(f"blocks fade or go at once: leave `schedule: {technique.schedule}` out, or use `one-shot`")
    if technique.granularity not in IN_PLACE and technique.allocation == "erk":
        raise ValueError("`erk` deals out weights: use `allocation: global`, or another granularity")
    if technique.granularity != "block" and technique.block != (4, 4):
        raise ValueError("`block` is the size of blocks: add `granularity: block`, or leave it out")
    if min(technique.block) < 1 or max(technique.block) == 1:
        raise ValueError(f"a block of {technique.block[0]} by {technique.block[1]} is none: as in `block: [4, 4]`")
