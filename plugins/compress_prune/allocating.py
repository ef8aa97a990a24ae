"""How a share is dealt out to layers by their shapes: Erdos-Renyi-Kernel.

    d_l = min(1, eps * (n_in + n_out + kH + kW) / (n_in * n_out * kH * kW)),   eps so that sum d_l n_l = (1 - s) sum n_l

d_l is the density of layer l, what stays of it, n_l how many weights it has and s the share that goes. Layers that
are small, or lie between few channels, stay denser; one whose density would exceed 1 stays whole, and eps is found
again for the others. Without kernels it is the Erdos-Renyi allocation of Mocanu.

Source: Mocanu et al. 2018, Scalable training of artificial neural networks with adaptive sparse connectivity, eq. 1;
Evci et al. 2020, Rigging the lottery, sec. 3(1). Ranges: shares in [0, 1). Cost: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def erdos_renyi(shapes: Sequence[tuple[int, ...]], counts: Sequence[int], share: float) -> list[float]:
    """The share of each layer that goes, so that `share` of all goes.

    Args:
        shapes: of the weights, (out, in, ...).
        counts: how many entries, or sets of them, each has.
        share: what goes of all, in [0, 1).
    """
    raw = [sum(shape) / prod(shape) for shape in shapes]
    stays = (1 - share) * sum(counts)
    whole: set[int] = set()
    while True:
        rest = [index for index in range(len(shapes)) if index not in whole]
        eps = (stays - sum(counts[index] for index in whole)) / sum(raw[index] * counts[index] for index in rest)
        over = {index for index in rest if eps * raw[index] > 1}
        if not over:
            return [0.0 if index in whole else 1 - eps * raw[index] for index in range(len(shapes))]
        whole |= over
