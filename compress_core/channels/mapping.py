"""Modules without weights that move channels, such as a shortcut that pads with channels of zeros.

Such a module says where its channels come from, so that channels before and behind it can go together:

    channel_map() -> (inputs, sources)      how many channels it reads, and for each that it gives the one that it
                                            takes it from, or -1 for zeros
    narrow_in(kept), narrow_out(kept)       to read, or to give, only these channels (their numbers, in order)

Groups of channels are joined across it channel by channel. Channels that go together in the same groups make one new
group: of a network of three widths with padding between them, 16 that run through all, 16 that begin at the second
and 32 at the third. A channel that is joined to one that has to stay stays.

Source: none; He et al. 2016, sec. 4.2, has such shortcuts (option A).
Cost: one pass over the channels of all groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from compress_core.channels.coupling import Group, LeftAlone, Member

Channel = tuple[int, int]
"""The number of a group and of one of its channels."""
STAYS: Channel = (-1, -1)


def moves_channels(module: object) -> bool:
    """Whether a module says where its channels come from."""
    return isinstance(module, nn.Module) and all(
        callable(getattr(module, name, None)) for name in ("channel_map", "narrow_in", "narrow_out")
    )


def map_of(module: nn.Module) -> tuple[int, tuple[int, ...]]:
    """How many channels a module reads, and where those that it gives come from."""
    inputs, sources = module.channel_map()  # type: ignore[operator]
    return int(inputs), tuple(map(int, sources))


def joined(model: nn.Module, groups: Sequence[Group]) -> tuple[list[Group], list[LeftAlone]]:
    """The groups, joined across the modules that move channels, and those that have to stay because of one."""
    from compress_core.channels.coupling import LeftAlone

    maps = {path: map_of(module)[1] for path, module in model.named_modules() if moves_channels(module)}
    touched = {number for number, group in enumerate(groups) for member in group.members if member.place[0] in maps}
    found = [group for number, group in enumerate(groups) if number not in touched]
    left = []
    if blocked := [groups[number] for number in sorted(touched) if groups[number].blocks > 1]:
        reason = "channels that lie in blocks are padded or moved"
        left += [LeftAlone(group.writers, reason) for group in blocked]
    sets = _Sets()
    movable = [number for number in sorted(touched) if groups[number].blocks == 1]
    for path, sources in maps.items():
        inside, outside = (_channels_at(groups, movable, path, side) for side in ("in", "out"))
        for out, source in enumerate(sources):
            if source >= 0:
                sets.join(inside.get(source, STAYS), outside.get(out, STAYS))
        for source in inside.keys() - set(sources):
            sets.join(inside[source], STAYS)
    classes: dict[frozenset[int], list[list[Channel]]] = {}
    for channels in sets.of((number, channel) for number in movable for channel in range(groups[number].size)):
        classes.setdefault(frozenset(number for number, _ in channels), []).append(channels)
    for numbers, members in classes.items():
        found.append(_joined([groups[number] for number in sorted(numbers)], sorted(numbers), members))
    gone = {writer for group in found for writer in group.writers}
    for number in movable:
        if not gone & set(groups[number].writers):
            left.append(LeftAlone(groups[number].writers, "they are joined to channels that have to stay"))
    return [group for group in found if group.size > 1], left


def _channels_at(groups: Sequence[Group], numbers: Iterable[int], path: str, side: str) -> dict[int, Channel]:
    """For each channel of a module on a side the channel of a group that it is."""
    return {
        int(index): (number, int(root))
        for number in numbers
        for member in groups[number].members
        if member.place[:2] == (path, side)
        for index, root in zip(member.index, member.root, strict=True)
    }


class _Sets:
    """Channels that go together: disjoint sets."""

    def __init__(self) -> None:
        self.parents: dict[Channel, Channel] = {}

    def top(self, channel: Channel) -> Channel:
        """The one that stands for a channel's set."""
        while (above := self.parents.get(channel, channel)) != channel:
            channel = above
        return channel

    def join(self, one: Channel, other: Channel) -> None:
        """Make one set of two; what stays stands for its set."""
        low, high = sorted((self.top(one), self.top(other)))
        self.parents[high] = low

    def of(self, channels: Iterable[Channel]) -> list[list[Channel]]:
        """The sets of these channels that do not have to stay, each in order."""
        found: dict[Channel, list[Channel]] = {}
        for channel in channels:
            if (top := self.top(channel)) != STAYS:
                found.setdefault(top, []).append(channel)
        return list(found.values())


def _joined(groups: Sequence[Group], numbers: Sequence[int], sets: Sequence[Sequence[Channel]]) -> Group:
    """One group of channels that go together in several."""
    place: Mapping[Channel, int] = {channel: index for index, channels in enumerate(sets) for channel in channels}
    members: list[Member] = []
    for number, group in zip(numbers, groups, strict=True):
        roots = torch.tensor([place.get((number, channel), -1) for channel in range(group.size)])
        for member in group.members:
            root = roots[member.root]
            members.append(replace(member, index=member.index[root >= 0], root=root[root >= 0]))
    writers = tuple(sorted({writer for group in groups for writer in group.writers}))
    return replace(groups[0], size=len(sets), members=tuple(members), writers=writers)
