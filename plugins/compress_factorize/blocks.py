"""Cheaper blocks that may take the place of a run of layers, by the shapes of what they replace.

For images (examples, channels, rows, columns), with m channels within and a stride s:

    separable    k x k for each channel by itself, stride s; 1 x 1
                 k^2 in + in out weights: Howard et al. 2017, MobileNets, sec. 3.1
    bottleneck   1 x 1 to m; k x k, stride s; 1 x 1
                 in m + k^2 m^2 + m out: He et al. 2016, Deep residual learning, sec. 4.1 and fig. 5
    narrow       k x k to m, stride s; k x k
                 k^2 m (in + out): the block of He et al. with fewer channels within

each convolution with batch normalization, and ReLU between them. For anything else (..., features), `bottleneck` and
`narrow` are the same two linear layers with ReLU between them, m (in + out) weights. Where the shapes allow it the
input is added to the result, and a block whose outputs are never negative ends in ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Residual(nn.Sequential):
    """Layers whose input is added to what they give."""

    def forward(self, input: Tensor) -> Tensor:
        """X + f(x)."""
        changed: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return input + changed


def separable(
    inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3, residual: bool = False, positive: bool = False
) -> nn.Sequential:
    """A convolution of each channel by itself, then 1 x 1."""
    layers = [*_convolved(inputs, inputs, kernel, stride, inputs), nn.ReLU(), *_convolved(inputs, outputs, 1)]
    return _block(layers, residual, positive)


def bottleneck(
    inputs: int,
    outputs: int,
    *,
    within: int,
    stride: int = 1,
    kernel: int = 3,
    residual: bool = False,
    positive: bool = False,
) -> nn.Sequential:
    """A convolution between two of 1 x 1 that lead to fewer channels and back."""
    layers = [
        *_convolved(inputs, within, 1),
        nn.ReLU(),
        *_convolved(within, within, kernel, stride),
        nn.ReLU(),
        *_convolved(within, outputs, 1),
    ]
    return _block(layers, residual, positive)


def narrow(
    inputs: int,
    outputs: int,
    *,
    within: int,
    stride: int = 1,
    kernel: int = 3,
    residual: bool = False,
    positive: bool = False,
) -> nn.Sequential:
    """Two convolutions with fewer channels between them."""
    layers = [*_convolved(inputs, within, kernel, stride), nn.ReLU(), *_convolved(within, outputs, kernel)]
    return _block(layers, residual, positive)


def perceptron(
    inputs: int, outputs: int, *, within: int, residual: bool = False, positive: bool = False
) -> nn.Sequential:
    """Two linear layers with few features between them."""
    return _block([nn.Linear(inputs, within), nn.ReLU(), nn.Linear(within, outputs)], residual, positive)


IMAGES: dict[str, Callable[..., nn.Sequential]] = {"separable": separable, "bottleneck": bottleneck, "narrow": narrow}
"""The blocks for images."""
FEATURES: dict[str, Callable[..., nn.Sequential]] = {"bottleneck": perceptron, "narrow": perceptron}
"""The blocks for everything else."""


def _convolved(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _block(layers: list[nn.Module], residual: bool, positive: bool) -> nn.Sequential:
    body = Residual(*layers) if residual else nn.Sequential(*layers)
    if not positive:
        return body
    return nn.Sequential(body, nn.ReLU()) if residual else body.append(nn.ReLU())


@torch.no_grad()
def begin_near(block: nn.Sequential, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Let a block of ours begin with the mean of what it should give, and half of its spread, in every channel.

    Args:
        block: as the functions above make it.
        pairs: what goes into it, (examples, channels, ...) or (..., features), and what should come out, likewise.
    """
    body = block[0] if isinstance(block[0], Residual) else block
    last = next(layer for layer in reversed(body) if isinstance(layer, nn.BatchNorm2d | nn.Linear))
    axis = 1 if isinstance(last, nn.BatchNorm2d) else -1
    wanted = [outputs - inputs if isinstance(body, Residual) else outputs for inputs, outputs in pairs]
    rows = torch.cat([one.movedim(axis, -1).flatten(0, -2) for one in wanted])
    spread, mean = torch.std_mean(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=0, correction=0)
    last.bias.copy_(mean)
    if isinstance(last, nn.BatchNorm2d):
        last.weight.copy_(spread / 2)
    else:
        norms = torch.linalg.vector_norm(last.weight, dim=1)
        last.weight.mul_((spread / 2 / norms.clamp(min=1e-12))[:, None])
