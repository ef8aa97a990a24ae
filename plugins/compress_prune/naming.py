"""What a user names: modules that stay (`skip`), the only ones to prune (`only`), and why one cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from compress_core.errors import ModelError
from compress_core.selecting import matching

if TYPE_CHECKING:
    from compress_prune import Prune

Left = Iterable[tuple[Sequence[str], str]]
"""Names of what is left alone, and why."""


def skipped(technique: Prune, model: nn.Module) -> dict[str, nn.Module]:
    """The modules that `skip` names, by path."""
    return matching(model, technique.skip)


def spared(technique: Prune, model: nn.Module) -> dict[str, nn.Module]:
    """The modules that stay, by path: those that `skip` names, and with `only` those of which it names no path."""
    found = skipped(technique, model)
    if technique.only:
        named = set(matching(model, technique.only, field="only").values())
        modules = model.named_modules(remove_duplicate=False)
        found |= {path: module for path, module in modules if path and module not in named}
    return found


def check_named(technique: Prune, model: nn.Module, going: Iterable[str], left: Left) -> None:
    """See that every pattern in `only` names something that can be pruned.

    Args:
        technique: has the patterns.
        model: the network.
        going: paths of the modules that can be pruned.
        left: what is left alone.

    Raises:
        ModelError: with the pattern and the reason.
    """
    able, reasons = set(going), list(left)
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    for pattern in technique.only:
        named = matching(model, [pattern], field="only")
        known_as = {path for module in named.values() for path in paths[module]}
        if able & known_as or all(isinstance(module, nn.Identity) for module in named.values()):
            continue
        why = [reason for names, reason in reasons if any(_within(name, named) for name in names)]
        what = f"{technique.granularity}s" if technique.granularity != "depth" else "blocks"
        raise ModelError(
            f"{pattern!r} in `only` cannot be pruned: {why[0] if why else f'it has no {what} that can go'}",
            mend=f"take it out of `only`; what can be pruned: {', '.join(sorted(able)[:10])}" if able else "",
        )


def by_reason(left: Left) -> list[tuple[str, str]]:
    """The names of what is left alone for each reason, at most five of them."""
    found: dict[str, list[str]] = {}
    for names, reason in left:
        found.setdefault(reason, []).extend(names)
    return [
        (", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""), reason)
        for reason, names in found.items()
    ]


def _within(name: str, named: dict[str, nn.Module]) -> bool:
    """Whether a name is that of a module, or of a parameter of one."""
    return name in named or name.rpartition(".")[0] in named
