"""`permute`: hidden units in an order that packs well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_core.parts import Change, Technique

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run


class Permute(Technique):
    """Sort hidden units by the number of weights that they have left; the network computes what it computed.

    The order of hidden units means nothing to a network. Sorted, those with many weights lie side by side, and
    `export: {format: packed}` codes the rows and columns of sparse layers in fewer bits. Outputs change by the rounding
    of additions in another order, and not otherwise, which is checked.
    """

    name = "permute"
    after_training = True

    @property
    def changes(self) -> frozenset[Change]:
        """The weights."""
        return frozenset({Change.WEIGHTS})

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Return the network with sorted units.

        Raises:
            ModelError: the network cannot be traced.
        """
        from compress_pack.ordering import ordered_units

        result, moved, stays = ordered_units(model, run)
        left = f"; {stays} groups of units cannot be sorted" if stays else ""
        run.say(f"permute: {moved} units moved{left}" if moved else f"permute: no unit moved: nothing changed{left}")
        return result
