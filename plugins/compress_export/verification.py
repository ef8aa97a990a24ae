"""Whether an exported file computes what the network computes.

    error = ||runtime - torch|| / ||torch||          for each tensor of the output, over the whole batch

In floating point the two differ by the order of their sums. In integers a sum beside a rounding boundary may
fall on either side, which moves one activation by one step, so more is allowed there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.errors import ModelError
from compress_core.modes import evaluating
from compress_export.signature import flatten
from compress_export.tracing import Example, resized

FLOAT_ERROR = 1e-3
INTEGER_ERROR = 5e-2
FUSED_ERROR = 1e-1
"""OpenVINO leaves out roundings between layers that it joins, and so is nearer to the network before it was rounded."""


def disagreement(found: Tensor, wanted: Tensor) -> float:
    """The relative error of a tensor; for integers and truth values the share of entries that differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if not wanted.is_floating_point():
        return float((found != wanted).double().mean()) if wanted.numel() else 0.0
    difference = torch.where(found == wanted, 0.0, found.double() - wanted.double())
    norm = torch.linalg.vector_norm(wanted.double()[wanted.isfinite()])
    error = float(torch.linalg.vector_norm(difference) / norm.clamp_min(1e-12))
    return float("inf") if isnan(error) else error


def verify(
    runtime: Callable[..., Any], model: nn.Module, example: Example, *, allowed: float, free: Sequence[int] = ()
) -> None:
    """Compare an opened file with its network at batches of one, two and five rows, and at shorter free axes.

    Args:
        runtime: the file, opened.
        model: its network.
        example: the forward's arguments.
        allowed: the largest relative error.
        free: the axes beside the batch that may have any size.

    Raises:
        ModelError: they disagree.
    """
    for rows, share in ((1, 1.0), (2, 1.0), (5, 1.0), *([(2, 0.5), (1, 0.2)] if free else [])):
        arguments, keywords = resized(example, rows, free, share)
        with evaluating(model), torch.no_grad():
            wanted = _tensors(model(*arguments, **keywords))
        found = _tensors(runtime(*arguments, **keywords))
        errors = [disagreement(one, other) for one, other in zip(found, wanted, strict=True)]
        worst = max(errors, default=0.0)
        if worst > allowed:
            raise ModelError(
                f"the exported file computes something else than the network: relative error {worst:.2g} "
                f"at a batch of {rows}, {allowed:.2g} is allowed",
                mend="look for operators that depend on the size of the batch or on chance in eval mode",
            )


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    flatten(value, found, "the output")
    return found
