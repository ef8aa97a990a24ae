"""What is known of a layer's inputs: their second moments over calibration batches.

    C = E[x x^T],    E|W x|^2 = tr(W C W^T)                     (x: what one output position sees)

For a convolution, x is the patch (in kH kW,) under the kernel, in the order of `weight.flatten(1)`, padding included.
Where the layer has a bias, what the mean of the inputs loses can be put into the bias, and only the spread about the
mean counts: C = E[x x^T] - E[x] E[x]^T and b' = b + (W - W') E[x], which is the best b'. A layer without a bias gets
none, and its C is not centred.

Nothing but the sums is kept. Of each batch at most `MOST` positions, or `PER_AXIS` times the length of x if that is
more, are taken, drawn by the seed; no other patch is ever built. Cost: O(positions d^2) time and O(d^2) memory per
layer, with d = in kH kW.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.modes import evaluating, unfused
from compress_core.run import Run

MOST = 4096
PER_AXIS = 2
CONSTANT = 1e-9
"""Inputs whose spread, as a share of their mean square, is below this for each axis are the same everywhere: what is
left of the difference is rounding."""


@dataclass(frozen=True)
class Inputs:
    """The second moments of the inputs of one layer."""

    moment: Tensor
    """(in, in) or (in kH kW, in kH kW), float64, on the processor; centred where there is a mean."""
    mean: Tensor | None = None
    """(in,) or (in kH kW,), where the layer has a bias that can take over what the mean gives."""

    def energy(self, weight: Tensor) -> Tensor:
        """E|W x|^2 = tr(W C W^T), a scalar."""
        matrix = weight.flatten(1)
        return (matrix @ self.moment).mul(matrix).sum()


def inputs_of(model: nn.Module, run: Run, layers: Mapping[str, nn.Module]) -> dict[str, Inputs]:
    """Measure the inputs of linear layers and convolutions in one pass over the calibration batches."""
    sums = {path: _Sums(layer, torch.Generator().manual_seed(run.seed)) for path, layer in layers.items()}
    handles = [layers[path].register_forward_pre_hook(entry.take) for path, entry in sums.items()]
    try:
        with evaluating(model), unfused(), torch.no_grad():
            for batch in run.calibration():
                run.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {path: entry.inputs() for path, entry in sums.items() if entry.count}


class Patches:
    """What each output position of a layer sees; only those that are asked for are copied."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        """Look at what goes into a layer."""
        self.seen = _windows(layer, x) if isinstance(layer, nn.Conv2d) else x.reshape(-1, x.shape[-1])

    def __len__(self) -> int:
        return len(self.seen) if self.seen.ndim == 2 else self.seen.shape[:3].numel()

    @property
    def length(self) -> int:
        """Numbers in each."""
        return self.seen.shape[1] if self.seen.ndim == 2 else self.seen.shape[3:].numel()

    def take(self, positions: Tensor | None = None) -> Tensor:
        """Those at some positions, or all, (positions, in) or (positions, in kH kW)."""
        if positions is not None:
            positions = positions.to(self.seen.device)
        if self.seen.ndim == 2:
            return self.seen if positions is None else self.seen[positions]
        if positions is None:
            return self.seen.flatten(3).flatten(0, 2)
        _, rows, columns = self.seen.shape[:3]
        image, place = positions // (rows * columns), positions % (rows * columns)
        return self.seen[image, place // columns, place % columns].flatten(1)


def _windows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A view of the padded images, (images, rows, columns, in, kH, kW)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    found = F.pad(x[None] if x.ndim == 3 else x, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, step, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        found = found.unfold(axis + 2, (size - 1) * dilation + 1, step)[..., ::dilation]
    return found.permute(0, 2, 3, 1, 4, 5)


@dataclass
class _Sums:
    """Sums over the positions seen so far."""

    layer: nn.Module
    generator: torch.Generator
    count: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def take(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Add what a call of the layer sees."""
        if not arguments:
            return
        every = Patches(self.layer, arguments[0].detach())
        most = max(MOST, PER_AXIS * every.length)
        chosen = torch.randperm(len(every), generator=self.generator)[:most] if len(every) > most else None
        seen = every.take(chosen).cpu().double()
        self.count += len(seen)
        self.first = self.first + seen.sum(0)
        self.second = self.second + seen.T @ seen

    def inputs(self) -> Inputs:
        """What the sums say."""
        mean, moment = self.first / self.count, self.second / self.count
        if getattr(self.layer, "bias", None) is None:
            return Inputs(moment)
        spread = moment - torch.outer(mean, mean)
        if spread.trace() <= CONSTANT * len(mean) * moment.trace():
            spread.zero_()
        return Inputs(spread, mean)
