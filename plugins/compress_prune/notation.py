"""How patterns are written in recipes; read without torch."""

from __future__ import annotations


def parsed(pattern: str) -> tuple[int, int]:
    """The numbers of `N:M`.

    Raises:
        ValueError: it is no such pattern, or nothing would go or stay.
    """
    keep, colon, of = pattern.partition(":")
    if not (colon and keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of)):
        raise ValueError(f"{pattern!r} is no pattern: write how many weights stay of how many, as in `2:4`")
    return int(keep), int(of)
