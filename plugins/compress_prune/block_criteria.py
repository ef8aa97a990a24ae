"""What a block of a network is worth as a whole.

    influence   1 - E[ x . y / (|x| |y|) ]            x what goes into the block, y what comes out, E over the positions
    ablation    L(network without the block) - L(network)             L the task's loss on calibration batches

A block that hardly turns its input has little influence; one without which the loss hardly rises is hardly missed.
The influence is measured for all blocks in one pass; the ablation sees what the rest of the network makes of it.

Source: Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, eq. 1 (block
influence); Veit et al. 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks, sec. 4.1 (each
block removed by itself). Ranges: influence in [0, 2]; ablation any number, below 0 where the network is better without.
Cost: one forward pass of the calibration batches, or one for each block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from compress_core.parts import Criterion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.run import Run

    Without = Mapping[str, Callable[[Tensor], Tensor]]


class Influence(Criterion):
    """How far a block turns what goes through it: one minus the cosine of its input and its output."""

    name = "influence"

    def module_scores(self, model: nn.Module, without: Without, state: nn.Module | None, run: Run) -> Tensor | None:
        """1 - E[cos(x, y)]."""
        from compress_prune.blocks import influences

        return influences(model, list(without), run)


class Ablation(Criterion):
    """How much the task's loss rises on calibration batches when a block by itself is taken out."""

    name = "ablation"

    def module_scores(self, model: nn.Module, without: Without, state: nn.Module | None, run: Run) -> Tensor | None:
        """L(without the block) - L."""
        from compress_prune.blocks import losses_without

        return losses_without(model, without, run)


BLOCK_CRITERIA: tuple[type[Criterion], ...] = (Ablation, Influence)
