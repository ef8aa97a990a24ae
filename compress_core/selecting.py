"""Modules chosen by patterns of their paths, as in `skip: ["head", "encoder.*"]`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from compress_core.errors import ModelError, suggest

if TYPE_CHECKING:
    from torch import nn


def matching(model: nn.Module, patterns: Iterable[str], *, field: str = "skip") -> dict[str, nn.Module]:
    """The modules whose path fits a pattern or lies below one that does, by path.

    Args:
        model: the network.
        patterns: paths; `*` stands for anything, as in `encoder.*`.
        field: the parameter that holds the patterns, for the message.

    Raises:
        ModelError: a pattern fits no module.
    """
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    found: set[str] = set()
    for pattern in patterns:
        fitting = [path for path in modules if fnmatchcase(path, pattern)]
        if not fitting:
            raise ModelError(f"the pattern {pattern!r} in `{field}` matches no module", mend=suggest(pattern, modules))
        found.update(fitting)
    return {
        path: module
        for path, module in modules.items()
        if path in found or any(path.startswith(f"{parent}.") for parent in found)
    }
