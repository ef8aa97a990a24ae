"""Weight clipping: remove every weight whose magnitude does not exceed a threshold.

    w' = w * 1[|w| > theta]                       (the hard-thresholding operator)

theta is absolute, a multiple q * sigma of the standard deviation of the weights, or found so that a wanted share of the
weights goes. Signs play no part: magnitudes are compared, so a large negative weight stays.

Source: Donoho & Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage, eq. 6 (the operator);
Han et al. 2015, Learning both weights and connections, sec. 3 (the threshold on magnitudes) and 4 (the "quality
parameter multiplied by the standard deviation of a layer's weights").
Cost: one pass over the weights and one selection of linear expected time; no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip(weight: Tensor, threshold: float) -> Tensor:
    """The weight, any shape, with every entry of magnitude at most `threshold` set to zero."""
    return weight.masked_fill(weight.abs() <= threshold, 0)


def threshold_for(weights: Sequence[Tensor], share: float) -> float | None:
    """The threshold over all `weights` together at which floor(share * n) of the n entries go.

    With distinct magnitudes the number is met exactly. Equal magnitudes go or stay together: then the
    threshold whose number is nearest is taken, the one that removes fewer if two are equally near.

    Args:
        weights: tensors of any shapes.
        share: the share that goes, in (0, 1).

    Returns:
        the threshold, or None if no threshold comes nearer to the share than removing nothing.
    """
    magnitudes = _magnitudes(weights)
    wanted = int(share * len(magnitudes) + 1e-6)
    if not wanted:
        return None
    threshold = magnitudes.kthvalue(wanted).values
    fewer = magnitudes < threshold
    below, upto = int(fewer.sum()), int((magnitudes <= threshold).sum())
    if upto - wanted < wanted - below:
        return float(threshold)
    return float(magnitudes[fewer].max()) if below else None


def threshold_of_deviations(weight: Tensor, multiple: float) -> float | None:
    """A multiple of the standard deviation of a weight's entries that are not zero; None if there are none.

    Zeros are weights that have gone before. Without them the deviation is that of the weights that are left, so
    that a second clipping is measured by these.
    """
    left = weight.detach()[weight.detach() != 0]
    return multiple * float(left.double().std(correction=0)) if len(left) else None


def _magnitudes(weights: Sequence[Tensor]) -> Tensor:
    """The magnitudes of all tensors in one float32 (or float64) row, filled piece by piece."""
    wide = any(weight.dtype == torch.float64 for weight in weights)
    row = torch.empty(sum(weight.numel() for weight in weights), dtype=torch.float64 if wide else torch.float32)
    start = 0
    for weight in weights:
        piece = row[start : start + weight.numel()]
        piece.copy_(weight.detach().reshape(-1))
        piece.abs_()
        start += weight.numel()
    return row
