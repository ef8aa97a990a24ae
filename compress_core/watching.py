"""What the watchers of a run see, and the calls that reach them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluggy import PluginManager


@dataclass(frozen=True, eq=False)
class Stage:
    """One step while it runs."""

    name: str
    folder: Path
    """Where watchers write, `runs/NAME` in a workspace."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The step as the recipe gives it, flat: `prune.amount` -> 0.5."""


class Watchers:
    """Calls the watching hooks of every plugin; one that fails is warned about and never stops the work."""

    def __init__(self, manager: PluginManager) -> None:
        self._manager = manager
        self._failed: set[str] = set()

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call `hook` of each plugin that has not failed before."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            name = implementation.plugin_name
            if name in self._failed:
                continue
            try:
                implementation.function(*(arguments[argument] for argument in implementation.argnames))
            except Exception as error:
                self._failed.add(name)
                warnings.warn(
                    f"plugin {name!r} failed in {hook} and watches no longer: {error!r}", RuntimeWarning, stacklevel=2
                )
