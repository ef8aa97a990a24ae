"""The canonical polyadic (CP) decomposition of a convolution: a chain of four layers, all thin or depthwise.

    W[o, i, y, x] ~ sum over r of O[o, r] I[i, r] Y[y, r] X[x, r]

    (in -> R, 1 x 1), (R -> R, kH x 1 depthwise), (R -> R, 1 x kW depthwise), (R -> out, 1 x 1)

Source: Lebedev et al. 2015, Speeding-up convolutional neural networks using fine-tuned CP-decomposition, sec. 3.1 and
eq. 3 to 8. The factors are found by alternating least squares (tensorly's `parafac`; Carroll and Chang 1970,
Harshman 1970), started from singular vectors and seeded random numbers; every sweep can only lower the error.
There is no closed form: the best CP of a rank may not even exist (de Silva and Lim 2008, Tensor rank and the
ill-posedness of the best low-rank approximation problem), and factors may grow while they cancel each other.
A kernel of fewer terms than asked for leaves a sweep without a single solution: a tiny ridge then chooses.

Ranges: 1 <= R; a rank may exceed the number of channels. Cost: a sweep is O(out in kH kW R + R^3) in float64, on the
processor; candidates are tried at `GRID` ranks with fewer sweeps than the final factors get.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from warnings import catch_warnings, simplefilter

import torch
from numpy import isfinite
from numpy.linalg import LinAlgError
from torch import Tensor

from compress_factorize.inputs import Inputs
from compress_factorize.pieces import Area, Candidates, Chain, Layer, Piece, weight_of

SWEEPS = 50
TRIAL_SWEEPS = 10
"""For candidates, whose kept share is thus a lower bound."""
GRID = 8
SEED = 0
_TOLERANCE = 1e-5
_RIDGE = 1e-9


def cp_factors(weight: Tensor, rank: int, sweeps: int = SWEEPS, seed: int = SEED) -> tuple[Tensor, ...]:
    """The matrices (out, rank), (in, rank), (kH, rank), (kW, rank) of a kernel (out, in, kH, kW).

    Each term's size is shared evenly by its four columns.
    """
    try:
        return _least_squares(weight.double(), rank, sweeps, seed)
    except LinAlgError:
        size = torch.linalg.vector_norm(weight.double())
        last, *others = _least_squares(weight.double() / size, rank, sweeps, seed, _RIDGE)
        return balanced([last, *others], size.expand(rank))


def _least_squares(weight: Tensor, rank: int, sweeps: int, seed: int, ridge: float = 0.0) -> tuple[Tensor, ...]:
    """The matrices by tensorly.

    Raises:
        LinAlgError: the terms are more than the kernel has, so that a sweep has no single solution.
    """
    import tensorly
    from tensorly.decomposition import parafac

    with catch_warnings(), tensorly.backend_context("numpy", local_threadsafe=True):
        simplefilter("ignore")  # it tells that a rank exceeds an axis, where it fills up with random numbers
        found = parafac(
            weight.numpy(), rank, n_iter_max=sweeps, init="svd", random_state=seed, tol=_TOLERANCE, l2_reg=ridge
        )
    if not all(isfinite(factor).all() for factor in found.factors):
        raise LinAlgError("a sweep gave no numbers")
    return balanced([torch.from_numpy(factor).double() for factor in found.factors], torch.from_numpy(found.weights))


def balanced(factors: Sequence[Tensor], sizes: Tensor) -> tuple[Tensor, ...]:
    """The same sum of terms, where the columns of a term are equally long.

    Args:
        factors: matrices (n_k, rank).
        sizes: a factor of each term, (rank,).
    """
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in factors])
    whole = norms.prod(dim=0) * sizes.abs()
    shares = torch.where(whole > 0, whole, 0).pow(1 / len(factors)) / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    scaled = [factor * share for factor, share in zip(factors, shares, strict=True)]
    return scaled[0] * sizes.sign(), *scaled[1:]


def from_cp(factors: Sequence[Tensor]) -> Tensor:
    """The kernel (out, in, kH, kW) of its four matrices."""
    return torch.einsum("or,ir,yr,xr->oiyx", *factors)


def kept_by_cp(weight: Tensor, rank: int) -> float:
    """The share 1 - ||W - W'||^2 / ||W||^2 that this rank keeps at least."""
    weight = weight.double()
    lost = weight - from_cp(cp_factors(weight, rank, TRIAL_SWEEPS))
    return max(0.0, 1.0 - float(lost.square().sum() / weight.square().sum()))


class Cp(Chain):
    """A convolution as 1 x 1, kH x 1 and 1 x kW for each channel by itself, and 1 x 1."""

    def candidates(self, layer: Layer, area: Area, multiple: int = 1, inputs: Inputs | None = None) -> Candidates:
        """One rank; some of those that save parameters are tried, since each has to be computed by itself."""
        weight = weight_of(layer)
        outputs, channels, height, width = weight.shape
        ranks = torch.tensor(trial_ranks(weight.numel(), sum(weight.shape), multiple), dtype=torch.long)
        kept = torch.tensor([kept_by_cp(weight, int(rank)) for rank in ranks], dtype=torch.float64)
        per_rank = channels * area.inputs + height * area.between + (width + outputs) * area.outputs
        return Candidates(ranks[:, None], kept, parameters=ranks * sum(weight.shape), macs=ranks * per_rank)

    def split(self, layer: Layer, ranks: Sequence[int], inputs: Inputs | None = None) -> list[Piece]:
        """Four pieces."""
        (rank,) = ranks
        last, first, vertical, horizontal = cp_factors(weight_of(layer), rank)
        return [
            Piece(first.t()[:, :, None, None]),
            Piece(vertical.t()[:, None, :, None], (0,), rank),
            Piece(horizontal.t()[:, None, None, :], (1,), rank),
            Piece(last[:, :, None, None]),
        ]


def trial_ranks(full: int, per_rank: int, multiple: int) -> list[int]:
    """Some multiples at even distances, the largest of which still saves parameters.

    Args:
        full: parameters of the layer.
        per_rank: parameters of the chain for each rank.
        multiple: the ranks are multiples of this.
    """
    most = (ceil(full / per_rank) - 1) // multiple
    return [multiple * count for count in sorted({ceil(most * step / GRID) for step in range(1, GRID + 1)} - {0})]
