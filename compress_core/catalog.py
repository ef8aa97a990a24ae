"""Finds plugins by entry point and names their parts.

Built-in plugins and strangers' come through the same door: the entry-point group `compress`. The
entry points are loaded here rather than by pluggy, which drops the second of two plugins with one name,
ignores a misspelt hook, and dies of a plugin that fails on import.
"""

from __future__ import annotations

import os
import warnings
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
from compress_core.parts import Criterion, DataSource, Exporter, Part, Task, Technique
from compress_core.watching import Watchers

DISABLED_VARIABLE = "COMPRESS_DISABLED_PLUGINS"
"""Names of plugins to leave out, with commas between them."""

REGISTERING = (
    "register_techniques",
    "register_criteria",
    "register_data_sources",
    "register_tasks",
    "register_exporters",
)
"""The hooks that are called when the catalog is read; `register_modules` waits until a model is built or saved."""

AnyPart = TypeVar("AnyPart", bound=Part)
Parts = dict[str, tuple[Any, ...]]
"""What one plugin gives to each registering hook."""


@dataclass(frozen=True)
class Plugin:
    """An installed plugin; `error` says why a broken one is left out."""

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
    criteria: Mapping[str, type[Criterion]]
    data_sources: Mapping[str, type[DataSource]]
    tasks: Mapping[str, type[Task]]
    exporters: Mapping[str, type[Exporter]]
    owners: Mapping[type[Part], Plugin] = field(repr=False)

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """The plugins that are left out: they fail on import, or cannot give their parts."""
        return tuple(plugin for plugin in self.plugins if plugin.error)

    @cached_property
    def watchers(self) -> Watchers:
        """Those who are told how a stage goes."""
        return Watchers(self.manager)

    @cached_property
    def modules(self) -> Mapping[str, type]:
        """The module types that plugins register, by qualified name. Imports what the plugins need for them.

        A plugin that cannot give them is warned about; only a network that holds such a module needs it.
        """
        found: dict[str, type] = {}
        for plugin in self.plugins:
            try:
                types = _call(self.manager, plugin.name, "register_modules")
                if strange := [kind for kind in types if not isinstance(kind, type)]:
                    raise PluginError(f"register_modules gives {strange[0]!r}, which is no type")
            except PluginError as error:
                warnings.warn(f"plugin {plugin.name!r} gives no modules: {error.what}", RuntimeWarning, stacklevel=2)
            else:
                found |= {f"{kind.__module__}.{kind.__qualname__}": kind for kind in types}
        return found

    def owner(self, part: type[Part]) -> Plugin:
        """The plugin that registered a part."""
        return self.owners[part]

    def unknown(self, kind: str, name: str, known: Iterable[str]) -> str:
        """How to mend an unknown name, with the plugins that are broken."""
        advice = suggest(name, known)
        for plugin in self.broken:
            advice += f"; plugin {plugin.name!r} of {plugin.distribution} is broken: {plugin.error}"
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
    given: dict[str, Parts] = {}
    plugins = tuple(_registered(manager, _load(point), given) for point in chosen)
    by_name = {plugin.name: plugin for plugin in plugins}
    owners: dict[type[Part], Plugin] = {}

    def parts(hook: str, kind: type[AnyPart]) -> dict[str, type[AnyPart]]:
        return _collect({name: found[hook] for name, found in given.items()}, hook, kind, by_name, owners)

    return Catalog(
        plugins=plugins,
        manager=manager,
        techniques=parts("register_techniques", Technique),  # type: ignore[type-abstract]
        criteria=parts("register_criteria", Criterion),
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
    if point.attr:
        return replace(plugin, error=f"its entry point {point.value!r} names an attribute, not a module with the hooks")
    try:
        return replace(plugin, module=_imported(point.module))
    except (Exception, SystemExit) as error:
        return replace(plugin, error=f"{type(error).__name__}: {error}")


def _imported(name: str) -> ModuleType:
    """Import a module, and once more if Python's parser fails: CPython 3.11's does when two threads parse at once."""
    try:
        return import_module(name)
    except SystemError:
        return import_module(name)


def _registered(manager: pluggy.PluginManager, plugin: Plugin, given: dict[str, Parts]) -> Plugin:
    """Register a plugin that could be imported and note its parts; it is broken if it cannot give them."""
    if plugin.module is None:
        return plugin
    _register(manager, plugin)
    try:
        given[plugin.name] = {hook: _call(manager, plugin.name, hook) for hook in REGISTERING}
        return plugin
    except PluginError as error:
        manager.unregister(name=plugin.name)
        return replace(plugin, module=None, error=error.what)


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


def _call(manager: pluggy.PluginManager, name: str, hook: str) -> tuple[Any, ...]:
    """What a plugin gives to a registering hook.

    Raises:
        PluginError: the hook fails, or gives nothing that can be gone through.
    """
    given: list[Any] = []
    for found in getattr(manager.hook, hook).get_hookimpls():
        if found.plugin_name == name:
            register: Callable[[], Iterable[Any]] = found.function
            try:
                given += register()
            except (Exception, SystemExit) as error:
                raise PluginError(f"{hook} fails with {type(error).__name__}: {error}") from error
    return tuple(given)


def _collect(
    given: Mapping[str, tuple[Any, ...]],
    hook: str,
    kind: type[AnyPart],
    plugins: Mapping[str, Plugin],
    owners: dict[type[Part], Plugin],
) -> dict[str, type[AnyPart]]:
    found: dict[str, type[AnyPart]] = {}
    for name, parts in given.items():
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
