"""Committees: several networks answer together.

    probabilities   z = log( 1/n sum_i softmax(z_i) )         so that softmax(z) is the mean of the members
    outputs         z = 1/n sum_i z_i

z_i are the outputs of the n members, each with the same weight. The first is for logits `(..., classes)`, the
second for anything that may be averaged as it is, such as a regression.

Source: Hansen & Salamon 1990, Neural Network Ensembles; Dietterich 2000, Ensemble Methods in Machine Learning, sec. 1;
Hinton et al. 2015, sec. 1 (an ensemble as the teacher to be distilled). Cost: the sum of the members'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.errors import ModelError


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the members' mean probability; every tensor has the shape `(..., classes)`."""
    members = torch.stack([member.log_softmax(dim=-1) for member in logits])
    return torch.logsumexp(members, dim=0) - log(len(logits))


def mean_output(outputs: Sequence[Tensor]) -> Tensor:
    """The mean of the members' outputs, of one shape."""
    return torch.stack(list(outputs)).mean(dim=0)


class Committee(nn.Module):
    """Networks with the same inputs and outputs, and the mean of what they say.

    An output that is a dictionary or a tuple comes back as the first member's, with `part` (a key or a place) replaced
    by the mean.
    """

    def __init__(
        self, members: Iterable[nn.Module] = (), part: str | int | None = None, average: str = "probabilities"
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.part = part
        self.average = average

    def arguments(self) -> dict[str, Any]:
        """What rebuilds it, but for its members."""
        return {"part": self.part, "average": self.average}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Ask every member."""
        outputs = [member(*args, **kwargs) for member in self.members]
        parts = [output if self.part is None else output[self.part] for output in outputs]
        mean = log_mean_probability(parts) if self.average == "probabilities" else mean_output(parts)
        first = outputs[0]
        if self.part is None:
            return mean
        if isinstance(first, Mapping):
            return {**first, self.part: mean}
        return tuple(mean if place == self.part else entry for place, entry in enumerate(first))


def members_of(model: nn.Module) -> list[nn.Module]:
    """The members of a committee, or the network itself."""
    return list(model.members) if isinstance(model, Committee) else [model]


def part_of(output: Any, logits: Tensor) -> str | int | None:
    """Where in a network's output its logits are: a key, a place, or None if they are the output itself.

    Raises:
        ModelError: they are no part of it.
    """
    match output:
        case Tensor():
            return None
        case Mapping():
            found: list[Any] = [key for key, entry in output.items() if entry is logits]
        case tuple() | list():
            found = [place for place, entry in enumerate(output) if entry is logits]
        case _:
            found = []
    if not found:
        raise ModelError(
            f"the logits cannot be found in the network's output of type {type(output).__name__}",
            mend="let it return a tensor, a dictionary or a tuple that holds them",
        )
    part: str | int = found[0]
    return part
