"""How many channels of each group go, as the parameters of `prune` say: a rule of allocation, up to a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress_core.channels.coupling import Group, keeps_of, zero_keeps
from compress_core.errors import ModelError
from compress_core.stopwatch import Stopwatch, exporter_of
from compress_prune.choosing import counts_among, importance, least, places, ranking, rounded
from compress_prune.latency import WithoutChannels
from compress_prune.sensitivity import Sensitivity, measured, restoring, shares_at
from compress_prune.targets import SIDES, CannotReach, Cost, Plan, cost_of, nothing, solved, solved_by_measuring

if TYPE_CHECKING:
    from compress_core.run import Run
    from compress_prune import Prune
    from compress_prune.observing import Scorer

Counts = Callable[[nn.Module, Sequence[Group], Sequence[Tensor], Sequence[Tensor]], list[int]]
"""How many channels of each group go in the end, given the network, the groups, their scores and what is gone."""
Rule = Callable[[Sequence[Tensor], Sequence[Tensor]], Callable[[float], list[int]]]
"""How many channels of each group go at each level in [0, 1], given their scores and what is gone."""

NAMES = {"count": "channels", "parameters": "parameters", "macs": "MACs", "latency": "time"}
"""What is pruned a share of, in words."""


def counts_for(technique: Prune, model: nn.Module, groups: Sequence[Group], scorer: Scorer, run: Run) -> Counts:
    """How many channels of each group go in the end.

    Raises:
        ModelError: the target cannot be met; the message says what can.
    """
    rule = _rule(technique, model, groups, scorer, run)
    if technique.of == "count" and technique.allocation != "sensitivity":
        return lambda model, groups, scores, gone: rule(scores, gone)(technique.share)
    if technique.of == "latency":
        fixed = _timed(technique, model, groups, scorer, rule=rule, run=run)
        return lambda model, groups, scores, gone: [
            max(count, int(mask.sum())) for count, mask in zip(fixed, gone, strict=True)
        ]
    cost: Cost = _channels if technique.of == "count" else cost_of(model, groups, technique.of, run)
    dense = cost(nothing(groups))

    def counts(
        model: nn.Module, groups: Sequence[Group], scores: Sequence[Tensor], gone: Sequence[Tensor]
    ) -> list[int]:
        plan = _plan(rule, groups, scores, gone)
        with _saying_what_can_be_met(technique):
            return [int(mask.sum()) for mask in solved(plan, cost, technique.share, dense)]

    alike = [torch.ones(group.size, dtype=torch.float64) for group in groups]
    counts(model, groups, alike, nothing(groups))  # what cannot be met is said before anything trains
    return counts


def _rule(technique: Prune, model: nn.Module, groups: Sequence[Group], scorer: Scorer, run: Run) -> Rule:
    """How the parameters deal out a level to the groups."""
    curves: list[Sensitivity] = []
    if technique.allocation == "sensitivity":
        scorer.read(model, run)
        curves = measured(model, _without_channels(model, groups, scorer), technique.share, run)

    def rule(scores: Sequence[Tensor], gone: Sequence[Tensor]) -> Callable[[float], list[int]]:
        ranked = ranking(scores, gone) if technique.allocation == "global" else None

        def counts(level: float) -> list[int]:
            if ranked is not None:
                wanted = counts_among(ranked, scores, level)
            else:
                shares = shares_at(curves, level) if curves else [level] * len(groups)
                wanted = [round(share * group.size) for share, group in zip(shares, groups, strict=True)]
            return rounded(groups, wanted, gone, technique.multiple)

        return counts

    return rule


def _plan(rule: Rule, groups: Sequence[Group], scores: Sequence[Tensor], gone: Sequence[Tensor]) -> Plan:
    """The masks at each level: the channels of least importance."""
    counts = rule(scores, gone)
    order = [places(score, mask, group.blocks) for score, mask, group in zip(scores, gone, groups, strict=True)]
    before = [int(mask.sum()) for mask in gone]

    def plan(level: float) -> list[Tensor]:
        return [
            place < max(count, least) // group.blocks
            for place, count, least, group in zip(order, counts(level), before, groups, strict=True)
        ]

    return plan


def _timed(
    technique: Prune, model: nn.Module, groups: Sequence[Group], scorer: Scorer, *, rule: Rule, run: Run
) -> list[int]:
    """How many channels go so that a call takes less time, measured once, and recorded: it depends on the machine."""
    scorer.read(model, run)
    scores = [_known(importance(model, group, scorer)) for group in groups]
    plan = _plan(rule, groups, scores, nothing(groups))
    stopwatch = Stopwatch(model, exporter_of(technique.runtime), technique.batch, run)
    watch = WithoutChannels(model, groups, stopwatch)
    with _saying_what_can_be_met(technique):
        masks, ratio = solved_by_measuring(plan, watch, technique.share)
    found = [int(mask.sum()) for mask in masks]
    kept = {group.name: group.size - count for group, count in zip(groups, found, strict=True)}
    threads = torch.get_num_threads()
    run.record("prune", {"runtime": technique.runtime, "batch": technique.batch, "threads": threads, "kept": kept})
    run.say(
        f"prune: a call of {technique.batch} takes {ratio:.0%} of the dense network's time in {technique.runtime} "
        f"with {threads} threads, measured beside it on this machine"
    )
    return found


@contextmanager
def _saying_what_can_be_met(technique: Prune) -> Iterator[None]:
    try:
        yield
    except CannotReach as error:
        of = NAMES[technique.of]
        least_step = "one channel" if technique.multiple == 1 else f"{technique.multiple} channels"
        ways = [f"lower `amount` to {int(error.most * 100) / 100:g}" if error.most >= 0.01 else "choose another target"]
        ways += ["lower `multiple`"] if technique.multiple > 1 else []
        ways += ["shorten `skip`"] if technique.skip else []
        raise ModelError(
            f"{technique.share:.1%} of the {of} cannot go: {error.most:.1%} would, with no more than {least_step} "
            f"left wherever channels can be pruned",
            mend=", or ".join(ways),
        ) from None


def _without_channels(
    model: nn.Module, groups: Sequence[Group], scorer: Scorer
) -> Mapping[str, Callable[[float], AbstractContextManager[None]]]:
    """For each group what takes a share of its channels out."""

    @contextmanager
    def without(group: Group, scores: Tensor, share: float) -> Iterator[None]:
        count = min(round(share * group.size), group.size - group.blocks)
        gone = least(scores, count, torch.zeros(group.size, dtype=torch.bool), group.blocks)
        names = {path for path, side, _ in (member.place for member in group.members) if side == "parameter"}
        paths = {path for path, side, _ in (member.place for member in group.members) if side in SIDES}
        tensors = [model.get_parameter(name) for name in sorted(names)]
        tensors += [tensor for path in sorted(paths) for tensor in model.get_submodule(path).parameters(recurse=False)]
        device = next(model.parameters()).device
        with restoring(tensors):
            zero_keeps(model, keeps_of([group], [gone.to(device)]))
            yield

    return {group.name: partial(without, group, _known(importance(model, group, scorer))) for group in groups}


def _channels(gone: Sequence[Tensor]) -> float:
    """The number of channels that stay."""
    return float(sum(int((~mask).sum()) for mask in gone))


def _known(scores: Tensor | None) -> Tensor:
    assert scores is not None
    return scores
