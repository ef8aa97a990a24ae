"""What is known of a layer's inputs: their second moments over calibration batches.

    C = E[x x^T],    E|W x|^2 = tr(W C W^T)                     (x: what one output position sees)

For a convolution, x is the patch (in kH kW,) under the kernel, in the order of `weight.flatten(1)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
