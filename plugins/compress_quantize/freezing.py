"""BatchNorms whose statistics stay while training goes on.

    y = gamma * (x - mean) / sigma + beta      with the running mean and variance, which do not move any more

From then on the network trains as it will be computed, with the statistics that are folded into the integers, and no
longer with those of each batch. gamma and beta still learn.

Sources: Krishnamoorthi 2018, Quantizing deep convolutional networks for efficient inference, sec. 3.2.2; Jacob et al.
2018, Quantization and Training of Neural Networks, sec. 3.2. Nothing is folded before the end of the training: with
symmetric integers per output channel that is exact. Cost: none.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


class Frozen(nn.Module):
    """Holds on to the BatchNorms of a network once they are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[RemovableHandle] = []

    def freeze(self, model: nn.Module) -> None:
        """Freeze every BatchNorm that has running statistics; more than once changes nothing."""
        if not self.handles:
            norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
            self.handles = [
                norm.register_forward_pre_hook(_evaluate) for norm in norms if norm.running_mean is not None
            ]

    def release(self) -> None:
        """Let them follow the batches again."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def _evaluate(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    norm.training = False
