"""N:M sparsity: of every M neighbouring weights, the N of largest magnitude stay.

    w' = w * 1[|w| is one of the N largest of its group]

A group is M consecutive weights of one output along the inputs: axis 1 of a linear weight (out, in) or of a
convolution's (out, in, kH, kW), there for each place of the kernel by itself. Of equal magnitudes the first stay.

Source: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, sec. 3 (N = 2, M = 4).
Ranges: 1 <= N < M, and M divides the number of inputs. Cost: one sort within each group; no data.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_largest(weight: Tensor, keep: int, of: int) -> Tensor:
    """The weight, (out, in, ...), with all but the `keep` largest of every `of` neighbours set to zero."""
    groups = weight.movedim(1, -1).unflatten(-1, (-1, of))
    order = groups.abs().argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups).scatter(-1, order[..., :keep], 1)
    return (groups * mask).flatten(-2).movedim(-1, 1)
