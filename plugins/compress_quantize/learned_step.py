"""Learned step sizes (LSQ): the step between two levels of a grid is trained with the weights.

    v = x / s,   x' = s * round(clamp(v, -Qn, Qp))                                                   (eq. 1, 2)

    dx'/ds = round(v) - v   if -Qn < v < Qp,   -Qn if v <= -Qn,   Qp if v >= Qp                      (eq. 3)
    dx'/dx = 1              if -Qn < v < Qp,   else 0                                                (eq. 5)

The gradient of s is multiplied by 1 / sqrt(N * Qp), where N is how many values the step is for: the weights of its
channel or tensor, or the activations of one example. s begins at 2 <|x|> / sqrt(Qp) (sec. 2.1), the mean taken over
what is not zero of a weight, since removed weights say nothing of the others, and at no more than what holds the
largest magnitude: at 8 bits the paper's is several times that. A grid with the zero point z is the case
Qn = z, Qp = highest - z: zero stays exact.

What is trained is the factor f in s = s0 * f, and its gradient is divided by s0. So SGD moves s by just as much as in
the paper; Adam, which does not see how large a gradient is, moves it by a share of itself where the paper's s, some
hundredths, would be thrown about by every update. f stays positive.

Source: Esser et al. 2020, Learned Step Size Quantization. Ranges: Qn >= 0, Qp >= 1.
Cost: a tensor of the size of x is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress_quantize.affine import asymmetric_grid, per_channel
from compress_quantize.observers import MOMENTUM, ActivationQuantizer
from compress_quantize.observing import Observing
from compress_quantize.weight_grids import WeightGrid

LEAST = 1 / 64
"""The smallest factor."""


def initial_step(mean_magnitude: Tensor, largest: Tensor, highest: Tensor | int) -> Tensor:
    """2 <|x|> / sqrt(Qp), or what holds the largest magnitude if that is less; 1 where all is zero."""
    levels = torch.as_tensor(highest, dtype=torch.float32).clamp(min=1)
    step = torch.minimum(2 * mean_magnitude / levels.sqrt(), largest / levels)
    return torch.where(step > torch.finfo(torch.float32).tiny, step, torch.ones_like(step))


def initial_weight_step(weight: Tensor, grid: WeightGrid) -> Tensor:
    """The first step of each output channel of a weight (out, ...), (out,), or of all, ()."""
    magnitude = weight.detach().abs()
    if grid.per_tensor:
        return initial_step(magnitude.sum() / (magnitude > 0).sum().clamp(min=1), magnitude.max(), grid.highest)
    rows = magnitude.reshape(len(weight), -1)
    return initial_step(rows.sum(1) / (rows > 0).sum(1).clamp(min=1), rows.amax(1), grid.highest)


def learned_fake_quantize(x: Tensor, step: Tensor, bounds: tuple[float, float], gradient_scale: float) -> Tensor:
    """X on the grid of a step, with the gradients of LSQ.

    Args:
        x: of any shape.
        step: positive, with one entry or of a shape that goes with x.
        bounds: -Qn and Qp, whole numbers.
        gradient_scale: what the step's gradient is multiplied by.
    """
    found: Tensor = _Learned.apply(x, step, bounds, gradient_scale)  # type: ignore[no-untyped-call]
    return found


class _Learned(torch.autograd.Function):
    """Whole-tensor arithmetic without booleans, which runs in vector instructions."""

    @staticmethod
    def forward(context: Any, x: Tensor, step: Tensor, bounds: tuple[float, float], gradient_scale: float) -> Tensor:
        steps = x * (1.0 / step)
        context.save_for_backward(steps)
        context.bounds, context.gradient_scale = bounds, gradient_scale
        context.shape, context.dtype = step.shape, step.dtype
        return steps.clamp(*bounds).round_().mul_(step)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (steps,), (gradient,) = context.saved_tensors, gradients
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, *context.bounds)
        clamped = steps.clamp(*context.bounds)
        of_step = (clamped.round() - clamped).mul_(gradient)  # 0 outside, where the bound is what counts
        of_step.addcmul_(gradient - inside, clamped)
        summed = of_step.sum_to_size(context.shape).to(context.dtype)
        return inside, summed * context.gradient_scale, None, None


class LearnedStep(nn.Module):
    """Step sizes in training, (out,) or (): a first value and a factor, which the optimizer moves."""

    first: Tensor

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.register_buffer("first", first.detach().clone())
        self.factor = nn.Parameter(torch.ones_like(first))

    def step(self) -> Tensor:
        """The steps; a gradient that comes back reaches the factor divided by `first`."""
        found: Tensor = _Scaled.apply(self.factor, self.first)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def restart(self, first: Tensor) -> None:
        """Begin at another value."""
        self.first.copy_(first)
        self.factor.fill_(1.0)

    @torch.no_grad()
    def stay_positive(self) -> None:
        """Take a factor back that an update has made too small."""
        self.factor.clamp_(min=LEAST)

    @torch.no_grad()
    def narrow(self, kept: Tensor) -> None:
        """Keep the steps of some channels only, if each has one."""
        if self.first.ndim:
            self.first = self.first[kept]
            self.factor = nn.Parameter(self.factor[kept])


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, factor: Tensor, first: Tensor) -> Tensor:
        context.save_for_backward(first)
        return factor * first

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (first,) = context.saved_tensors
        return gradients[0] / first, None


def fake_quantize_learned(weight: Tensor, learned: LearnedStep, grid: WeightGrid) -> Tensor:
    """A weight (out, ...) on the grid of learned steps."""
    step = learned.step()
    count = weight.numel() // step.numel()
    step = per_channel(step, weight.ndim) if step.ndim else step
    bounds = (float(-grid.highest), float(grid.highest))
    return learned_fake_quantize(weight, step, bounds, (count * grid.highest) ** -0.5)


class LearnedQuantizer(ActivationQuantizer):
    """Observes the tensor that passes until it is activated; then its step is learned and its zero point stays."""

    magnitude: Tensor
    zero_point: Tensor

    def __init__(self, observing: Observing = Observing()) -> None:  # noqa: B008 - frozen
        super().__init__(observing)
        self.learning = False
        self.register_buffer("magnitude", torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self.learned = LearnedStep(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x of any shape, on the grid of the learned step."""
        if not self.learning:
            if self.training and not self.calibrating:
                self._follow_magnitude(x)
            return super().forward(x)
        bounds = self._bounds()
        size = x[:1].numel() * max(1.0, bounds[1])
        return learned_fake_quantize(x, self.learned.step(), bounds, max(1.0, size) ** -0.5)

    def activate(self) -> None:
        """Begin to learn from what was observed, if anything was."""
        super().activate()
        if self.learning or not self.observed:
            return
        highest = self.observing.levels
        _, zero_point = asymmetric_grid(self.low, self.high, highest)
        self.zero_point.copy_(zero_point)
        levels = torch.maximum(zero_point, highest - zero_point)
        self.learned.restart(initial_step(self.magnitude, torch.maximum(-self.low, self.high), levels))
        self.learning = True

    def grid(self) -> tuple[Tensor, Tensor]:
        """The learned step and the zero point; those of the range if nothing was learned."""
        if not self.learning:
            return super().grid()
        return self.learned.step().detach(), self.zero_point

    def restart(self) -> None:
        """Calibrate, unless the step was learned."""
        if not self.learning:
            super().restart()

    def _bounds(self) -> tuple[float, float]:
        zero_point = float(self.zero_point)
        return -zero_point, self.observing.levels - zero_point

    @torch.no_grad()
    def _follow_magnitude(self, x: Tensor) -> None:
        self.magnitude.lerp_(x.abs().mean().float(), MOMENTUM if self.observed else 1.0)


def new_quantizer(observing: Observing, *, learned: bool) -> ActivationQuantizer:
    """What observes and rounds an edge while the network trains."""
    return LearnedQuantizer(observing) if learned else ActivationQuantizer(observing)
