"""Optimizers: how a weight w moves along its gradient g, at the learning rate r (torch.optim's own code).

    sgd      v' = m v + g;                          w' = w - r v'       (Polyak 1964)
             nesterov: w' = w - r (g + m v')                            (Sutskever et al. 2013, eq. 3-4)
    adam     u' = 0.9 u + 0.1 g;  s' = 0.999 s + 0.001 g^2;  both divided by their sum of weights so far;
             w' = w - r u' / (sqrt(s') + 1e-8)                          (Kingma & Ba 2015, alg. 1)
    adamw    adam, and w' = w - r d w beside it                         (Loshchilov & Hutter 2019, alg. 2)
    nadam    adam that looks ahead as nesterov does                     (Dozat 2016, alg. 2)
    rmsprop  s' = 0.99 s + 0.01 g^2;  v' = m v + g / (sqrt(s') + 1e-8);  w' = w - r v'    (Hinton 2012, lecture 6e)
    adagrad  s' = s + g^2;  w' = w - r g / (sqrt(s') + 1e-10)           (Duchi et al. 2011, fig. 1)

**Decay is not L2.** The weight decay d of adamw and nadam shrinks every weight by the share r d, whatever its
gradient. A term l2/2 |w|^2 in the loss adds l2 w to the gradient instead, which an adaptive optimizer divides
by the gradient's own size: a weight with large gradients is then hardly regularized at all (Loshchilov & Hutter
2019, prop. 2). Under sgd the two agree, so its weight decay is exactly the L2 term. Under adam, rmsprop and
adagrad a "decay" would be the L2 term by a wrong name, and is refused.

**Default rates** are those of the papers (sgd: He et al. 2016, 0.1 at batches of 128 with momentum 0.9) and differ by
two orders of magnitude between the families. They hold for batches of 64. Another batch size b scales them by b/64
for sgd (Goyal et al. 2017, sec. 2.1) and by sqrt(b/64) for the adaptive ones (Malladi et al. 2022, On the SDEs and
Scaling Rules for Adaptive Gradient Algorithms, sec. 5). Momentum m moves a weight by r / (1 - m) in the long run, so
the default is multiplied by 1 - m.

Cost: memory of one (sgd with momentum, adagrad, rmsprop) or two (the rest) more numbers per weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import optim

REFERENCE_BATCH = 64
"""The batch size for which the default rates hold."""


@dataclass(frozen=True)
class Rule:
    """One optimizer: what makes it, and what it wants unless told otherwise."""

    make: Callable[..., optim.Optimizer]
    rate: float
    """The learning rate for batches of 64 and no momentum."""
    scaling: float = 0.5
    """The power of the batch size with which the rate grows."""
    momentum: float | None = None
    """None if it has no such parameter."""
    decay: float | None = None
    """Its usual weight decay; None if it has none that is worth the name."""


RULES: dict[str, Rule] = {
    "sgd": Rule(optim.SGD, rate=0.5, scaling=1.0, momentum=0.9, decay=0.0),
    "adam": Rule(optim.Adam, rate=1e-3),
    "adamw": Rule(optim.AdamW, rate=1e-3, decay=0.01),
    "nadam": Rule(partial(optim.NAdam, decoupled_weight_decay=True), rate=2e-3, decay=0.0),
    "rmsprop": Rule(optim.RMSprop, rate=1e-3, momentum=0.0),
    "adagrad": Rule(optim.Adagrad, rate=1e-2),
}


def default_rate(name: str, batch_size: int, momentum: float) -> float:
    """The learning rate of an optimizer for this batch size and momentum."""
    rule = RULES[name]
    return rule.rate * (1.0 - momentum) * float((batch_size / REFERENCE_BATCH) ** rule.scaling)


def make_optimizer(
    groups: Iterable[dict[str, Any]], *, name: str, rate: float, momentum: float, nesterov: bool
) -> optim.Optimizer:
    """The optimizer over parameter groups, each of which carries its own weight decay."""
    options: dict[str, Any] = {"lr": rate}
    if RULES[name].momentum is not None:
        options["momentum"] = momentum
    if nesterov:
        options["nesterov"] = True
    return RULES[name].make(groups, **options)
