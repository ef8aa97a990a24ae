"""Adaptive rounding (AdaRound): whether each weight goes up or down is learned from what its layer gives.

    q(V)   = clamp(floor(w / s) + h(V), -highest, highest)                                       (eq. 22)
    h(V)   = clamp(sigmoid(V) (zeta - gamma) + gamma, 0, 1),   zeta = 1.1, gamma = -0.1           (eq. 23)
    min    || f(W x) - f(s q(V) x') ||^2 + lambda sum (1 - |2 h(V) - 1|^beta)                  (eq. 21, 24, 25)

x' is what the layer reads behind layers that are rounded already, x what it reads in the real network, f its ReLU
if it has one. beta goes from 20 to 2 after a fifth of the steps, so that h is free at first and 0 or 1 at the end.
A weight of zero stays zero. The result is kept if it is better on all calibration data than the nearest integers.

Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, sec. 3. Cost: `steps` times
a forward and a backward of each layer on a few examples; what one layer reads and gives is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor
from torch.nn import functional as F

ZETA, GAMMA = 1.1, -0.1
FIRST_BETA, LAST_BETA = 20.0, 2.0
WARM_UP = 0.2
"""Share of the steps without the second term."""
STRENGTH = 0.01
"""lambda."""
LEARNING_RATE = 1e-2
CHUNK = 128
"""How many examples the errors of the two roundings are compared on at a time."""


@dataclass(frozen=True)
class Reconstruction:
    """What a layer is to give, and how it computes."""

    respond: Callable[[Tensor, Tensor], Tensor]
    """The layer's output (examples, ...) for an input (examples, ...) and a weight (out, ...)."""
    read: Tensor
    """What it reads behind rounded layers, (examples, ...)."""
    wanted: Tensor
    """What it gives in the real network, (examples, ...)."""
    axis: int
    """The axis of its output channels."""
    rectified: bool

    def error(self, weight: Tensor, chosen: Tensor | slice) -> Tensor:
        """The squared error over the channels, a mean over all else, of some examples."""
        given, wanted = self.respond(self.read[chosen], weight), self.wanted[chosen]
        if self.rectified:
            given, wanted = F.relu(given), F.relu(wanted)
        return (given - wanted).square().sum(self.axis).mean()

    @torch.no_grad()
    def whole_error(self, weight: Tensor) -> float:
        """The error on all examples."""
        parts = [
            float(self.error(weight, slice(at, at + CHUNK))) * len(self.read[at : at + CHUNK])
            for at in range(0, len(self.read), CHUNK)
        ]
        return sum(parts) / len(self.read)


def relaxed(logit: Tensor) -> Tensor:
    """h(V), in [0, 1]."""
    return (torch.sigmoid(logit) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def logit_of(share: Tensor) -> Tensor:
    """The V of which h is a share in [0, 1)."""
    return torch.logit((share - GAMMA) / (ZETA - GAMMA))


def undecided(share: Tensor, beta: float) -> Tensor:
    """The sum of 1 - |2h - 1|^beta: 0 where every h is 0 or 1."""
    return (1 - (2 * share - 1).abs().pow(beta)).sum()


def beta_at(progress: float) -> float:
    """The exponent: from 20 to 2 along half a cosine, after the warm-up."""
    done = max(0.0, progress - WARM_UP) / (1 - WARM_UP)
    return LAST_BETA + (FIRST_BETA - LAST_BETA) * (1 + cos(pi * done)) / 2


def adaptive_integers(
    weight: Tensor, scale: Tensor, highest: int, goal: Reconstruction, *, steps: int, batch: int, seed: int
) -> Tensor:
    """The integers of a weight (out, ...), as floating-point numbers, with steps that spread to its shape.

    Args:
        weight: real.
        scale: (out, 1, ...), its steps.
        highest: the largest integer; the smallest is its negative.
        goal: what the layer is to give.
        steps: of Adam.
        batch: how many examples a step sees.
        seed: of the choice of the examples.
    """
    ratio = weight.detach() / scale
    down = ratio.floor()
    free = (weight != 0) & (ratio.abs() < highest)
    logit = logit_of(ratio - down).requires_grad_()
    nearest = ratio.round().clamp(-highest, highest)
    optimizer = torch.optim.Adam([logit], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for step in range(steps):
            share = relaxed(logit)
            integers = torch.where(free, (down + share).clamp(-highest, highest), nearest)
            chosen = torch.randint(len(goal.read), (min(batch, len(goal.read)),), generator=generator)
            loss = goal.error(integers * scale, chosen)
            if step >= WARM_UP * steps:
                loss = loss + STRENGTH * undecided(share[free], beta_at((step + 1) / steps))
            (logit.grad,) = torch.autograd.grad(loss, [logit])
            optimizer.step()
    learned = torch.where(free, (down + (relaxed(logit.detach()) >= 0.5)).clamp(-highest, highest), nearest)
    better = goal.whole_error(learned * scale) < goal.whole_error(nearest * scale)
    return learned if better else nearest
