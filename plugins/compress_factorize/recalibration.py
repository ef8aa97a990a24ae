"""Batch normalization after a change of weights: its statistics are measured again.

    mean, variance = averages over calibration batches of what now reaches the layer

Factors change the spread of every response behind them, which the running statistics of training do not know;
measuring them again on a few batches needs no labels and no gradient. Source: Li et al. 2020, EagleEye: fast
sub-net evaluation for efficient neural network pruning, sec. 3.3 (adaptive batch normalization). Cost: one
pass over the calibration batches.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_core.modes import evaluating
from compress_core.run import Run


def recalibrate(model: nn.Module, run: Run) -> int:
    """Measure the statistics of every batch normalization again, in place, and return how many there are.

    Everything else stays in eval mode. Each batch counts alike, whatever the layer's momentum. A normalization that no
    batch reaches keeps what it has, and is not counted.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    batches = [batch for batch in run.calibration() if run.task.size(batch) > 1] if norms else []
    if not batches:
        return 0
    before = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for batch in batches:
            run.forward(model, batch)
    unseen = [norm for norm in norms if not norm.num_batches_tracked]
    for norm, (momentum, buffers) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if norm in unseen:
            norm.load_state_dict(buffers, strict=False)
    return len(norms) - len(unseen)
