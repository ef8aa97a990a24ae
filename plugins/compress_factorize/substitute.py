"""The technique that replaces blocks; its mathematics is in `substitution.py`, the blocks are in `blocks.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from compress_core.errors import ModelError, suggest
from compress_core.parts import Change, Technique

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run
    from compress_factorize.places import Place
    from compress_factorize.substitution import Call

BLOCKS = ("separable", "bottleneck", "narrow")
WITHIN = ("bottleneck", "narrow")
"""The blocks that have channels of their own within."""


class Substitute(Technique):
    """Replace runs of layers by cheaper blocks, each trained to give what the layers gave.

    Every block learns by itself from the inputs and outputs that its predecessor has in the network as it comes, on
    the training split, without labels. Then they are put in its place, and the whole may be tuned. A block that has
    neither fewer parameters nor fewer multiplications is left out and named.
    """

    name = "substitute"
    example: ClassVar[Mapping[str, Any]] = {"paths": ["blocks.1"], "block": "separable", "epochs": 1}

    paths: tuple[str, ...] = Field(min_length=1)
    """The blocks by their paths; `*` stands for anything, and `features.3:6` for the children 3 to 6 of a sequence."""
    block: str = "separable"
    """What takes their place: `separable`, `bottleneck` or `narrow`, made for the shapes found; or a factory of your
    own by its import string, `package.module:factory`."""
    width: float = Field(default=0.5, gt=0, le=1)
    """The channels within a `bottleneck` or `narrow` block, as a share of those that it gives."""
    params: Mapping[str, Any] = Field(default_factory=dict)
    """Arguments of a factory of your own."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(default=64, ge=1)
    """Examples per update."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """Adam's first step size; it falls to nothing along a cosine."""

    @field_validator("block")
    @classmethod
    def _known(cls, block: str) -> str:
        if ":" not in block and block not in BLOCKS:
            raise ValueError(f"{block!r} is neither a block nor an import string; {suggest(block, BLOCKS)}")
        return block

    @model_validator(mode="after")
    def _meaningful(self) -> Substitute:
        if self.params and ":" not in self.block:
            raise ValueError("`params` are for a factory of your own")
        if "width" in self.model_fields_set and self.block not in WITHIN:
            raise ValueError(f"`width` is for {' and '.join(WITHIN)}: a block {self.block!r} has none, leave it out")
        return self

    @property
    def changes(self) -> frozenset[Change]:
        """Layers and their weights."""
        return frozenset({Change.ARCHITECTURE, Change.WEIGHTS})

    def imports(self) -> tuple[str, ...]:
        """The factory, if it is the user's own."""
        return (self.block,) if ":" in self.block else ()

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Build, teach and put in place.

        Raises:
            ModelError: a path matches nothing, or a block does not fit its place.
        """
        from compress_core.measure import counts
        from compress_core.modes import leave_fused_paths
        from compress_factorize.places import places_of, put
        from compress_factorize.substitution import distil

        before = counts(model, run.example)
        places = places_of(model, self.paths)
        blocks, left = self._blocks(model, places, run)
        why = f"; no cheaper: {', '.join(left)}" if left else ""
        if not blocks:
            run.say(f"substitute: nothing changed{why}")
            return model
        errors = distil(model, blocks, run, epochs=self.epochs, batch_size=self.batch_size, rate=self.learning_rate)
        for place, block in blocks.items():
            put(model, place, block)
        leave_fused_paths(model, [place.first for place in blocks])
        after = counts(model, run.example)
        done = ", ".join(f"{place} (error {error:.1%})" for place, error in errors.items())
        run.say(
            f"substitute: {len(blocks)} {'block' if len(blocks) == 1 else 'blocks'} replaced, {before.parameters:,} to "
            f"{after.parameters:,} parameters, {before.macs:,} to {after.macs:,} MACs: {done}{why}"
        )
        return model

    def _blocks(self, model: nn.Module, places: list[Place], run: Run) -> tuple[dict[Place, nn.Module], list[str]]:
        """A fresh block for every place, and the places of which it would not be cheaper."""
        from compress_core.measure import counts
        from compress_factorize.places import old_layers
        from compress_factorize.substitution import taught

        calls = [taught(model, places, run, batch) for batch in run.calibration(limit=2)]
        blocks: dict[Place, nn.Module] = {}
        left: list[str] = []
        for place in places:
            seen = [call for batch in calls for call in batch[place]]
            if not seen:
                raise ModelError("the network does not call it", where=str(place), mend="name another block")
            block = self._block(place, seen, run)
            example = (seen[0].arguments, seen[0].keywords)
            old, new = counts(old_layers(model, place), example), counts(block, example)
            if new.parameters < old.parameters or new.macs < old.macs:
                blocks[place] = block
            else:
                left.append(str(place))
        return blocks, left

    def _block(self, place: Place, calls: list[Call], run: Run) -> nn.Module:
        """A fresh block for a place."""
        import torch

        from compress_factorize.blocks import begin_near
        from compress_factorize.substitution import build, built_in

        if ":" in self.block:
            return build(place, calls[0], self.block, self.params, run)
        factory, params = built_in(place, calls, self.block, self.width)
        block = build(place, calls[0], factory, params, run, numbers=calls[0].output.dtype)
        assert isinstance(block, torch.nn.Sequential)
        begin_near(block, [(call.arguments[0], call.output) for call in calls])
        return block
