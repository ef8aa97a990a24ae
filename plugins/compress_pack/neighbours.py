"""Codes of a sparse matrix whose distribution follows the codes around them.

    context = level above + level of the row that lies `lag` above, each and the sum within -3 and 3
    weight[context, s] = 4 + 32 * (how often s came in that context)

The level of a code is its place below or above zero, and zero where there is none. Weights that lie side by side in a
picture have the same sign, nearly always. A row is coded at once, from the rows before it.

Source: context models of lossless image coding, as in JPEG-LS (Weinberger et al. 2000), for codes instead of errors.
Range: up to 64 different codes. Cost: 50 microseconds a row that has any.
"""

from __future__ import annotations

import numpy as np

from compress_pack.positions import LAGS, Mask, best_lag
from compress_pack.sequences import INCREMENT
from compress_pack.streams import Coder, Ints, Words

MOST = 64
_REACH = 3
_PRIOR = 4


def code_near(coder: Coder, levels: Ints, mask: Mask, values: Words | None) -> Words:
    """Code symbols at the places of a mask, by rows; (places,).

    Args:
        coder: the direction.
        levels: of each symbol; known to both sides.
        mask: known to both sides.
        values: the symbols, or None to read them.
    """
    low, high, lag = (0, 0, 1) if values is None else (int(values.min()), int(values.max()), best_lag(mask))
    low = coder.number(len(levels), low)
    size = coder.number(min(MOST, len(levels) - low), high - low) + 1
    lag = 1 + coder.number(LAGS, lag - 1)
    clipped = np.clip(levels, -_REACH, _REACH).astype(np.int8)
    around = np.zeros((len(mask) + lag, mask.shape[1]), np.int8)
    weights = np.full((2 * _REACH + 1, size), _PRIOR, np.int64)
    found = np.empty(int(np.count_nonzero(mask)), np.uint16)
    at = 0
    for row in np.flatnonzero(mask.any(1)).tolist():
        places = np.flatnonzero(mask[row])
        end = at + len(places)
        near = around[row + lag - 1, places] + around[row, places]
        context = np.minimum(np.maximum(near, -_REACH), _REACH) + _REACH
        given = None if values is None else values[at:end].astype(np.int64) - low
        symbols = coder.mixed(weights[context], given)
        np.add.at(weights, (context, symbols), INCREMENT)
        around[row + lag, places] = clipped[symbols + low]
        found[at:end] = symbols + low
        at = end
    return found
