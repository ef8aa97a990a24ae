"""Pruning blocks: which go, how they fade while the network trains, and that they are gone in the end.

    y = r(x) + (1 - s(t)) (B(x) - r(x))         B the block, r what remains of it: the input, or its relu

Which blocks go is decided before the first update, by their scores in the network as it comes. Along a gradual
schedule s rises from 0 to 1, so that the network gets used to doing without them; with `one-shot` they are gone
before the network trains, which then trains faster. Source of the fade: none, a straight line from one to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress_core.errors import ModelError
from compress_core.selecting import matching
from compress_core.weights import weights
from compress_prune.depth import Block, drop_blocks, fault_without, find_blocks, hang
from compress_prune.masks import Removal
from compress_prune.naming import by_reason, check_named, spared
from compress_prune.observing import Scorer

if TYPE_CHECKING:
    from compress_core.run import Run
    from compress_prune import Prune


class FadingBlocks(Removal):
    """Blocks on their way out."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block], scorer: Scorer) -> None:
        super().__init__(scorer)
        self.blocks = tuple(blocks)
        self.stays = 1.0
        """How much of the blocks is still there."""
        self.handles = hang(model, blocks, self.faded)

    def faded(self, without: Tensor, whole: Tensor) -> Tensor:
        """What a block gives now."""
        return without.lerp(whole, self.stays) if self.stays else without

    def grow(self, model: nn.Module, done: float, run: Run) -> None:
        """Fade the blocks until `done` of them is gone."""
        self.stays = min(self.stays, 1 - done)

    def observe(self, model: nn.Module, progress: float) -> None:
        """Nothing: which blocks go is decided."""

    def remove(self, model: nn.Module, done: float) -> None:
        """Nothing goes before the end."""

    def hold(self, model: nn.Module) -> None:
        """Nothing: the blocks are set aside by their hooks."""

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the blocks out.

        Raises:
            ModelError: the network does not run without them.
        """
        self.abandon()
        if self.blocks:
            _drop(model, self.blocks, run)
        return model

    def abandon(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()


def without_blocks(technique: Prune, model: nn.Module, run: Run) -> nn.Module:
    """The network without the blocks that score least, in place.

    Raises:
        ModelError: no block can go.
    """
    if blocks := _chosen(technique, model, run):
        _drop(model, blocks, run)
    return model


def fading_blocks(technique: Prune, model: nn.Module, run: Run) -> FadingBlocks:
    """The blocks that score least, still there; none if they went before the training.

    Raises:
        ModelError: no block can go.
    """
    blocks = [] if technique.schedule == "one-shot" else _chosen(technique, model, run)
    return FadingBlocks(model, blocks, Scorer(technique.ranking, model, run))


def count_blocks(technique: Prune, model: nn.Module, run: Run) -> int:
    """How many blocks can go, if it is blocks that go.

    Raises:
        ModelError: `skip` or `only` would mean other blocks in the next round.
    """
    if technique.granularity != "depth":
        return 0
    blocks = find_blocks(model, run, set(spared(technique, model)))[0]
    check_numbers(technique, model, blocks)
    return len(blocks)


def check_numbers(technique: Prune, model: nn.Module, blocks: Sequence[Block]) -> None:
    """See that patterns still mean the same when some of these blocks have left their lists.

    Raises:
        ModelError: one names some members of a list, and not all.
    """
    for parent in sorted({block.parent for block in blocks if block.leaves}):
        members = {f"{parent}.{name}" for name, _ in model.get_submodule(parent).named_children()}
        for field, patterns in (("skip", technique.skip), ("only", technique.only)):
            for pattern in patterns:
                paths = matching(model, [pattern], field=field)
                named = {member for member in members if any(f"{path}.".startswith(f"{member}.") for path in paths)}
                if named and named != members:
                    raise ModelError(
                        f"{pattern!r} in `{field}` names some members of {parent}, which get other numbers when "
                        f"blocks leave it: in the next round it would mean another one",
                        mend="use `schedule: one-shot` or `gradual`, or leave the pattern out",
                    )


def block_scores(model: nn.Module, blocks: Sequence[Block], scorer: Scorer, run: Run) -> Tensor | None:
    """The score of each block, (blocks,): its own, or the sum over its weights; None if the criterion has neither."""
    scorer.read(model, run)
    without = {block.path: block.without for block in blocks}
    if (own := scorer.criterion.module_scores(model, without, scorer.seen, run)) is not None:
        return own
    if not scorer.criterion.scores_weights():
        return None
    totals = torch.zeros(len(blocks), dtype=torch.float64)
    for index, block in enumerate(blocks):
        for place in weights(model.get_submodule(block.path)):
            found = scorer.weight_scores(f"{block.path}.{place.name}", place.parameter)
            totals[index] += 0.0 if found is None else found.double().sum().cpu()
    return scorer.criterion.pooled(totals)


def _chosen(technique: Prune, model: nn.Module, run: Run) -> list[Block]:
    """The blocks that go: those that score least."""
    blocks, left = find_blocks(model, run, set(spared(technique, model)))
    reasons = [(entry.names, entry.reason) for entry in left]
    check_named(technique, model, (block.path for block in blocks), reasons)
    kept = [f"{names} left alone: {reason}" for names, reason in by_reason(reasons)]
    if not blocks:
        raise ModelError(
            "; ".join(["the network has no block that it could do without", *kept]),
            mend="a block adds to its input, or is one of a sequence and keeps the shape; prune channels or weights",
        )
    scores = block_scores(model, blocks, Scorer(technique.ranking, model, run), run)
    if scores is None:
        raise ModelError(
            f"the criterion {technique.ranked_by!r} has no score for blocks",
            mend="use `criterion: influence`, `criterion: ablation`, or one that ranks weights",
        )
    for text in kept:
        run.say(f"prune: {text}")
    chosen = least_of(blocks, scores, round(technique.share * len(blocks)), model)
    if not chosen:
        said = "its list would be empty" if technique.share * len(blocks) > 0.5 else f"{technique.share:.0%} is none"
        run.say(f"prune: nothing changed: of {len(blocks)} blocks that could go, {said}")
    return chosen


def least_of(blocks: Sequence[Block], scores: Tensor, count: int, model: nn.Module) -> list[Block]:
    """The `count` blocks that score least, in their order; one of those that leave a list stays in it."""
    chosen: set[int] = set()
    members = Counter(block.parent for block in blocks if block.leaves)
    still = {parent: len(list(model.get_submodule(parent).children())) for parent in members}
    for place in scores.argsort(stable=True).tolist():
        block = blocks[place]
        if len(chosen) < count and not (block.leaves and still[block.parent] == 1):
            chosen.add(place)
            if block.leaves:
                still[block.parent] -= 1
    return [block for place, block in enumerate(blocks) if place in chosen]


def _drop(model: nn.Module, blocks: Sequence[Block], run: Run) -> None:
    names = ", ".join(block.path for block in blocks)
    if fault := fault_without(model, blocks, run):
        raise ModelError(f"the blocks {names} cannot go together: {fault}", mend="name one of them in `skip`")
    before = sum(parameter.numel() for parameter in model.parameters())
    drop_blocks(model, blocks)
    after = sum(parameter.numel() for parameter in model.parameters())
    said = "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"
    run.say(f"prune: {said} went, with {before - after:,} of {before:,} parameters ({names})")
