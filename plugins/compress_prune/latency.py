"""The time of a network without some channels, measured beside the dense one (see compress_core.stopwatch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compress_core.stopwatch import Stopwatch
from compress_prune.targets import naming, without

if TYPE_CHECKING:
    from compress_core.channels.coupling import Group


class WithoutChannels:
    """Called with masks of channels, the share of the dense network's time that a call takes without them."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], watch: Stopwatch) -> None:
        self.model, self.groups, self.watch = model, tuple(groups), watch

    def __call__(self, gone: Sequence[Tensor]) -> float:
        """Measure."""
        network = without(self.model, self.groups, gone)
        with naming(self.groups):
            return self.watch(network)
