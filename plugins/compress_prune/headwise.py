"""Pruning attention heads: torch's attention is taken apart, and its heads are ranked and cut like channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from compress_core.attention import Attention, pack, unpack
from compress_prune.channelwise import ChannelMasks, masks_of
from compress_prune.heads import head_groups, packed_attention
from compress_prune.naming import spared

if TYPE_CHECKING:
    from compress_core.run import Run
    from compress_prune import Prune


class HeadMasks(ChannelMasks):
    """Masks of heads per attention, True where a head is gone."""

    noun = "head"

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Cut the heads out; attention that has lost none is torch's own again.

        Raises:
            ModelError: the network would compute something else without the heads.
        """
        model = super().finish(model, run)
        pack(model, [path for path, module in model.named_modules() if isinstance(module, Attention)])
        return model


def taken_apart(technique: Prune, model: nn.Module) -> nn.Module:
    """The network with torch's attention in separate projections, in place."""
    unpack(model, packed_attention(model, set(spared(technique, model)))[0])
    return model


def head_masks(technique: Prune, model: nn.Module, run: Run) -> ChannelMasks:
    """Find the heads that can go.

    Raises:
        ModelError: none can.
    """
    groups, left = head_groups(model, run, set(spared(technique, model)))
    return masks_of(technique, model, run, groups, left, kind=HeadMasks)
