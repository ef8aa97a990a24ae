"""Finds plugins by entry point and names their parts.

Built-in plugins and strangers' come through the same door: the entry-point group `compress`. The
entry points are loaded here rather than by pluggy, which drops the second of two plugins with one name,
ignores a misspelt hook, and dies of a plugin that fails on import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from compress_core import hookspecs
from compress_core.errors import PluginError, suggest
from compress_core.parts import DataSource, Exporter, Part, Task, Technique
from compress_core.watching import Watchers

DISABLED_VARIABLE = "COMPRESS_DISABLED_PLUGINS"
"""Names of plugins to leave out, with commas between them."""

AnyPart = TypeVar("AnyPart", bound=Part)


@dataclass(frozen=True)
class Plugin:
    """An installed plugin; `error` says why a broken one could not be imported."""

    name: str
    package: str
    distribution: str
    version: str
    module: ModuleType | None = field(default=None, repr=False)
    error: str = ""


@dataclass(frozen=True)
class Catalog:
    """The installed plugins and their parts by name."""

    plugins: tuple[Plugin, ...]
    manager: pluggy.PluginManager = field(repr=False)
    techniques: Mapping[str, type[Technique]]
    data_sources: Mapping[str, type[DataSource]]
    tasks: Mapping[str, type[Task]]
    exporters: Mapping[str, type[Exporter]]
    owners: Mapping[type[Part], Plugin] = field(repr=False)

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """The plugins that failed on import."""
        return tuple(plugin for plugin in self.plugins if plugin.error)

    @cached_property
    def watchers(self) -> Watchers:
        """Those who are told how a stage goes."""
        return Watchers(self.manager)

    @cached_property
    def modules(self) -> Mapping[str, type]:
        """The module types that plugins register, by qualified name. Imports what the plugins need for them."""
        found: dict[str, type] = {}
        for _, types in _call_each(self.manager, "register_modules"):
            for kind in types:
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
        return found

    def owner(self, part: type[Part]) -> Plugin:
        """The plugin that registered a part."""
        return self.owners[part]

    def unknown(self, kind: str, name: str, known: Iterable[str]) -> str:
        """How to mend an unknown name, with the plugins that failed on import."""
        advice = suggest(name, known)
        for plugin in self.broken:
            advice += f"; plugin {plugin.name!r} of {plugin.distribution} failed on import: {plugin.error}"
        return f"{advice} (`compress plugins` lists every {kind})"


@lru_cache(maxsize=1)
def catalog() -> Catalog:
    """The catalog of this environment, read once per process."""
    return read_catalog(entry_points(group=hookspecs.PROJECT), os.environ.get(DISABLED_VARIABLE, ""))


def read_catalog(points: Iterable[EntryPoint], disabled: str = "") -> Catalog:
    """Load the plugins behind `points`.

    Raises:
        PluginError: two plugins or two parts have one name, or a plugin implements an unknown hook.
    """
    left_out = {name.strip() for name in disabled.split(",") if name.strip()}
    once = {(point.name, point.value): point for point in points if point.name not in left_out}
    chosen = [once[key] for key in sorted(once)]
    _refuse_clashes(chosen)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins = tuple(_load(point) for point in chosen)
    for plugin in plugins:
        if plugin.module is not None:
            _register(manager, plugin)
    by_name = {plugin.name: plugin for plugin in plugins}
    owners: dict[type[Part], Plugin] = {}

    def parts(hook: str, kind: type[AnyPart]) -> dict[str, type[AnyPart]]:
        return _collect(manager, hook, kind, by_name, owners)

    return Catalog(
        plugins=plugins,
        manager=manager,
        techniques=parts("register_techniques", Technique),  # type: ignore[type-abstract]
        data_sources=parts("register_data_sources", DataSource),  # type: ignore[type-abstract]
        tasks=parts("register_tasks", Task),  # type: ignore[type-abstract]
        exporters=parts("register_exporters", Exporter),  # type: ignore[type-abstract]
        owners=owners,
    )


def _refuse_clashes(points: list[EntryPoint]) -> None:
    for one, other in pairwise(points):
        if one.name == other.name:
            raise PluginError(
                f"two plugins are called {one.name!r}: {one.value} of {_distribution(one)[0]} "
                f"and {other.value} of {_distribution(other)[0]}",
                mend=f"uninstall one of them, or leave both out with {DISABLED_VARIABLE}={one.name}",
            )


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else ("unknown", "0")


def _load(point: EntryPoint) -> Plugin:
    distribution, version = _distribution(point)
    plugin = Plugin(point.name, point.module.partition(".")[0], distribution, version)
    try:
        return replace(plugin, module=import_module(point.module))
    except (Exception, SystemExit) as error:
        return replace(plugin, error=f"{type(error).__name__}: {error}")


def _register(manager: pluggy.PluginManager, plugin: Plugin) -> None:
    if (other := manager.get_name(plugin.module)) is not None:
        raise PluginError(
            f"the plugins {other!r} and {plugin.name!r} are the same module of {plugin.distribution}",
            mend=f"leave one out with {DISABLED_VARIABLE}={plugin.name}",
        )
    try:
        manager.register(plugin.module, plugin.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        hooks = [name for name in vars(hookspecs) if name.startswith(("register_", "stage_", "scalar_"))]
        known = set(hooks)
        strange = [
            name
            for name, value in vars(plugin.module).items()
            if name not in known and hasattr(value, f"{hookspecs.PROJECT}_impl")
        ]
        raise PluginError(
            f"plugin {plugin.name!r} of {plugin.distribution} {plugin.version} does not fit the hooks: {error}",
            mend="; ".join(f"{name}: {suggest(name, hooks)}" for name in strange)
            or "compare the hook's arguments with compress_core/hookspecs.py",
        ) from error


def _call_each(manager: pluggy.PluginManager, hook: str) -> Iterable[tuple[str, Iterable[Any]]]:
    """The result of a registering hook, plugin by plugin in the order of their names."""
    implementations = {found.plugin_name: found for found in getattr(manager.hook, hook).get_hookimpls()}
    for name in sorted(implementations):
        register: Callable[[], Iterable[Any]] = implementations[name].function
        yield name, tuple(register())


def _collect(
    manager: pluggy.PluginManager,
    hook: str,
    kind: type[AnyPart],
    plugins: Mapping[str, Plugin],
    owners: dict[type[Part], Plugin],
) -> dict[str, type[AnyPart]]:
    found: dict[str, type[AnyPart]] = {}
    for name, parts in _call_each(manager, hook):
        for part in parts:
            if not (isinstance(part, type) and issubclass(part, kind) and isinstance(getattr(part, "name", None), str)):
                raise PluginError(
                    f"plugin {name!r}: {hook} gives {part!r}",
                    mend=f"give subclasses of {kind.__name__} with a class attribute `name`",
                )
            if part.name in found:
                raise PluginError(
                    f"plugins {owners[found[part.name]].name!r} and {name!r} both have "
                    f"a {kind.__name__} called {part.name!r}",
                    mend=f"uninstall one of them, or leave one out with {DISABLED_VARIABLE}={name}",
                )
            found[part.name] = part
            owners[part] = plugins[name]
    return found
