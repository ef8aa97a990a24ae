"""Numbers that a user's module keeps of its channels, such as `self.width` in `x.view(-1, self.width * 4)`.

A group of channels whose removal keeps the network from running may only need such a number lowered with it. Which
one is tried: those that count the channels of the group, then those that are a multiple of it, then all that count
them together. The proof decides whether a network with it computes what it should; a number that nothing uses is
never lowered, since the group is tried without first.

Source: none.
Cost: at most seven proofs for each group that is in question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from compress_core.channels.mapping import moves_channels

if TYPE_CHECKING:
    from compress_core.channels.coupling import Group

MOST = 6
"""How many numbers are tried."""


def with_attributes(model: nn.Module, group: Group) -> Iterator[Group]:
    """The group with numbers that may have to be lowered with it, the likeliest first."""
    from compress_core.channels.coupling import Member

    counts = [name for name, value in _numbers(model) if value == group.size]
    multiples = [name for name, value in _numbers(model) if value > group.size and value % group.size == 0]
    every = torch.arange(group.size)
    tries = [[name] for name in counts + multiples][:MOST] + ([counts] if len(counts) > 1 else [])
    for names in tries:
        members = [Member((name, "attribute", 0), group.size, every, every) for name in names]
        yield replace(group, members=(*group.members, *members))


def _numbers(model: nn.Module) -> Iterator[tuple[str, int]]:
    """The whole numbers that modules of a user's own keep in public attributes."""
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.") or moves_channels(module):
            continue
        for name, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
                yield (f"{path}.{name}" if path else name), value
