"""Dropout: while a network trains, each value is left out with probability p.

    y = x * b / (1 - p),  b ~ Bernoulli(1 - p)      in train mode
    y = x                                           in eval mode, and in the finished network

The division keeps the expected value, so nothing needs to be scaled afterwards.

Source: Srivastava et al. 2014, Dropout, sec. 4, with the scaling at training time (its sec. 10). Cost: none at
inference. Only rates of layers that exist are set: where dropout belongs is the architecture's business.
"""

from __future__ import annotations

from torch import nn

LAYERS = nn.modules.dropout._DropoutNd


def set_dropout(model: nn.Module, rate: float) -> int:
    """Set the rate of every dropout layer, attention and stacked recurrent layer in place; return their number."""
    changed = 0
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.p = rate
        elif isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1):
            module.dropout = rate
        else:
            continue
        changed += 1
    return changed
