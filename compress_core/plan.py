"""The training plan: what the training techniques of one step agree on before the network trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class TrainingPlan:
    """Each technique returns a changed copy (`dataclasses.replace`) of the plan it is given."""

    epochs: int = 0
    """Passes over the training split; 0 means that nothing trains and only `finish` works."""
    batch_size: int = 64
    optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer] | None = None
    """Makes the optimizer from parameter groups; None is AdamW with torch's defaults."""
    weight_decay: float = 0.0
    """The optimizer's own decay, for weights of two or more dimensions; biases, norms and scales have none."""
    schedule: Callable[[float], float] | None = None
    """Multiplies the learning rate; its argument is the share of all updates that are done, in [0, 1]."""
    regularizers: tuple[Callable[[nn.Module], Tensor], ...] = ()
    """Terms of the loss that depend on the weights alone."""
    task_weight: float = 1.0
    """Weight of the task's own loss beside the terms of the techniques."""
    gradient_clip: float | None = None
    """Largest total L2 norm of the gradient."""
    select_from: float = 0.0
    """Progress from which an epoch may be chosen as the best, or training may stop early."""
    patience: int | None = None
    """Epochs without a better validation quality after which training stops."""
    keep: str = "best"
    """`best`: the epoch with the best validation quality; `last`: the last one."""
