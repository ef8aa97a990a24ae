"""Sets of weights that go together: single weights, N of every M, blocks of the matrix, kernels.

    N:M       of every M weights that follow one another along the inputs (axis 1), the N of highest score stay
    block     the weight as a matrix (out, in * kH * kW), cut into rectangles of `rows` by `columns`
    kernel    the kH x kW weights by which one channel of a convolution reads another

A set has the mean of its weights' scores, pooled by the criterion: of L2 the root of the mean square, so that sets of
different sizes, such as the last blocks of a matrix, are compared by what one weight is worth.

Source: Mishra et al. 2021, Accelerating sparse deep neural networks, sec. 3 (2:4); Gray et al. 2017, GPU kernels for
block-sparse weights; Mao et al. 2017, Exploring the granularity of sparsity, sec. 3 (kernels).
Cost: one pass over the weights; N:M sorts within each M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Pool = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Singles:
    """Every weight by itself."""

    noun: str = "weight"

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this shape cannot be divided into such sets; None if it can."""
        return None

    def total(self, shape: tuple[int, ...]) -> int:
        """How many sets can go of a weight of this shape."""
        return int(torch.Size(shape).numel())

    def scores(self, scores: Tensor, pool: Pool, zero: Tensor, gone: Tensor) -> Tensor:
        """The score of each set: those that are zero come first, and those that are gone before them.

        Args:
            scores: those of the weights.
            pool: makes the score of a set of the mean over it.
            zero: which weights are zero.
            gone: which weights went before.
        """
        found = pool(self.mean(scores))
        found = found.masked_fill(self.whole(zero), torch.finfo(found.dtype).min)  # it may be the criterion's own
        return found.masked_fill_(self.whole(gone), -torch.inf)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over each set."""
        return values

    def whole(self, mask: Tensor) -> Tensor:
        """Which sets are in a mask as a whole."""
        return mask

    def spread(self, sets: Tensor, shape: tuple[int, ...]) -> Tensor:
        """For each weight of this shape whether its set is in a mask of sets, (sets,) in their order."""
        return sets.reshape(shape)


@dataclass(frozen=True)
class OfEach(Singles):
    """All but `keep` of every `of` weights along the inputs; whatever may stay has an infinite score."""

    keep: int = 2
    of: int = 4

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Inputs that cannot be divided."""
        return f"{shape[1]} inputs are no multiple of {self.of}" if shape[1] % self.of else None

    def total(self, shape: tuple[int, ...]) -> int:
        """How many weights go in the end."""
        return super().total(shape) // self.of * (self.of - self.keep)

    def scores(self, scores: Tensor, pool: Pool, zero: Tensor, gone: Tensor) -> Tensor:
        """The score of each weight, infinite for those that stay in the end."""
        last = super().scores(scores, pool, zero, gone).movedim(1, -1)
        fours = last.reshape(*last.shape[:-1], -1, self.of)
        stays = fours.argsort(dim=-1, stable=True)[..., self.of - self.keep :]
        return fours.scatter(-1, stays, torch.inf).reshape(last.shape).movedim(-1, 1)


@dataclass(frozen=True)
class Blocks(Singles):
    """Rectangles of the matrix; the last ones of a row or a column may be smaller."""

    noun: str = "block"
    rows: int = 4
    columns: int = 4

    def total(self, shape: tuple[int, ...]) -> int:
        """How many blocks there are, begun ones included."""
        height, width = self._counts(shape)
        return height * width

    def mean(self, values: Tensor) -> Tensor:
        """The mean over each block, (down, across)."""
        matrix = values.flatten(1)
        return self._summed(matrix) / self._summed(torch.ones_like(matrix))

    def whole(self, mask: Tensor) -> Tensor:
        """Which blocks are in a mask as a whole."""
        return self._summed((~mask.flatten(1)).float()) == 0

    def spread(self, sets: Tensor, shape: tuple[int, ...]) -> Tensor:
        """For each weight whether its block is in the mask."""
        width = int(torch.Size(shape[1:]).numel())
        wide = sets.reshape(self._counts(shape)).repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        return wide[: shape[0], :width].reshape(shape)

    def _counts(self, shape: tuple[int, ...]) -> tuple[int, int]:
        width = int(torch.Size(shape[1:]).numel())
        return -(-shape[0] // self.rows), -(-width // self.columns)

    def _summed(self, matrix: Tensor) -> Tensor:
        down, across = self._counts(tuple(matrix.shape))
        padding = (0, across * self.columns - matrix.shape[1], 0, down * self.rows - matrix.shape[0])
        return F.pad(matrix, padding).reshape(down, self.rows, across, self.columns).sum((1, 3))


@dataclass(frozen=True)
class Kernels(Singles):
    """Whole kernels of convolutions."""

    noun: str = "kernel"

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Weights that are no convolution's."""
        return None if len(shape) > 2 else "it has no kernels"

    def total(self, shape: tuple[int, ...]) -> int:
        """How many kernels there are."""
        return shape[0] * shape[1]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over each kernel, (out, in)."""
        return values.flatten(2).mean(2)

    def whole(self, mask: Tensor) -> Tensor:
        """Which kernels are in a mask as a whole."""
        return mask.flatten(2).all(2)

    def spread(self, sets: Tensor, shape: tuple[int, ...]) -> Tensor:
        """For each weight whether its kernel is in the mask."""
        return sets.reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
