"""`step.lock.yaml`: what the result of every step depends on beside its parameters, as content hashes.

    data:       the data source: its plugin, its files, the user's code behind it
    machine:    what times depend on: the processor, the runtimes, the code that measures
    steps:
      NAME:
        core:      the modules of compress_core that compute
        plugins:   the sources of every plugin package that takes part
        code:      the user's modules, followed from the model's factory without importing it
        files:     files that the parameters name: weights
        versions:  of torch and whatever else these sources import

DVC compares each step's part with that of its last run, so an edited model file or an upgraded plugin runs
the steps again that use it and no other. Hashes rather than versions, since what is installed in place
changes without one. Run as `python -m compress_core.lock`; it imports no torch and takes a fraction of a
second.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from compress_core.catalog import Catalog, Plugin, catalog
from compress_core.computing import FOR_DATA, MEASURES, core_hash
from compress_core.errors import DataError, RecipeError
from compress_core.files import write_text
from compress_core.hashes import Memory, files_below, hash_tree
from compress_core.imports import split_import
from compress_core.parts import Part
from compress_core.recipe import Recipe, Step, read_recipe
from compress_core.sources import Closure, Finder, Module, closure, imported, module_name
from compress_core.workspace import Workspace, ending_with_status

NUMERIC = ("numpy", "pydantic", "safetensors", "torch", "torchmetrics")
"""Distributions that the core computes with, in every step."""
EXPORTING = ("onnxscript",)
"""What torch's own exporter computes with, in every step that exports."""
RUNTIMES = (*NUMERIC, "onnx", "onnxruntime", "openvino")
"""Distributions on which times depend; one that is not installed is left out."""
CORE = "compress_core"

Entry = dict[str, Any]


def lock(recipe: Recipe, workspace: Workspace, plugins: Catalog | None = None) -> Entry:
    """What the data and every step of a recipe depend on, and what the machine is.

    Raises:
        RecipeError: a factory's module does not exist, or some source is no Python.
        DataError: a file of the data source does not exist.
    """
    memory = Memory(workspace.root / ".compress" / "hashes.json")
    maker = _Maker(recipe, workspace.root, plugins or catalog(), memory)
    found = {
        "data": maker.data(),
        "machine": machine() | {"measured_by": core_hash(MEASURES)},
        "steps": {name: maker.step(step) for name, step in recipe.steps.items()},
    }
    memory.save()
    return {key: _sorted(value) for key, value in found.items()}


class _Maker:
    """Entries of one recipe, which share what they find."""

    def __init__(self, recipe: Recipe, root: Path, plugins: Catalog, memory: Memory) -> None:
        self.recipe, self.root, self.plugins, self.memory = recipe, root, plugins, memory
        self.finder = Finder(root)
        self.packages = {plugin.package: plugin for plugin in plugins.plugins if not plugin.error}
        self._closures: dict[str, Closure] = {}
        self._plugin_entries: dict[str, tuple[str, Closure]] = {}

    @cached_property
    def core(self) -> str:
        """The part of the core that computes, the same for every step."""
        return core_hash()

    def data(self) -> Entry:
        source = self.recipe.data
        return self._entry(
            core=core_hash(FOR_DATA),
            plugins=self._owners([source]),
            imports={text: "data" for text in source.imports()},
            files=dict(self._data_files(source.files())),
        )

    def step(self, step: Step) -> Entry:
        """A step computes with its own parts, and with the networks that come to it from the steps before.

        Such a network may hold modules of the plugins, and whole networks of the factories, of any of them.
        """
        before = list(self._before(step))
        origins = [origin for origin in (step, *before) if origin.input is None]
        models = [(origin.model or self.recipe.model, _place(origin)) for origin in origins]
        owners = self._owners((part for earlier in before for part in earlier.parts), with_modules=True)
        return self._entry(
            core=self.core,
            plugins=owners | self._owners([self.recipe.task, *step.parts]),
            imports={**_within(*before, step), **{model.factory: place for model, place in models}},
            files=dict(self._named_files([*(model.params for model, _ in models), *step.use.values()])),
            numeric=NUMERIC if step.exporter is None else (*NUMERIC, *EXPORTING),
        )

    def _before(self, step: Step) -> Iterator[Step]:
        """The steps on whose networks a step rests, inputs and teachers alike."""
        waiting, seen = list(step.needs), set()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                yield self.recipe.steps[name]
                waiting.extend(self.recipe.steps[name].needs)

    def _owners(self, parts: Iterable[Part], *, with_modules: bool = False) -> dict[str, Plugin]:
        found = {plugin.package: plugin for plugin in map(self.plugins.owner, map(type, parts))}
        if not with_modules:
            return found
        return {name: plugin for name, plugin in found.items() if hasattr(plugin.module, "register_modules")}

    def _entry(
        self,
        *,
        core: str,
        plugins: dict[str, Plugin],
        imports: Mapping[str, str],
        files: dict[str, str],
        numeric: Iterable[str] = NUMERIC,
    ) -> Entry:
        found = Closure()
        for text, place in imports.items():
            where = f"{self.recipe.path}, {place}"
            module, _ = split_import(text, RecipeError, where)
            top = module.partition(".")[0]
            if top in self.packages:
                plugins = plugins | {top: self.packages[top]}
            elif top != CORE:
                _merge(found, self._closure(module, where))
        hashed = {}
        for package, plugin in plugins.items():
            hashed[package], theirs = self._plugin(plugin)
            _merge(found, theirs)
        names = {*numeric, *map(self._distribution, found.packages)} - {""}
        versions = {name: version_of(name) or "not installed" for name in names}
        versions |= {name: "not installed" for name in found.missing}
        entry = {"code": found.own, "core": core, "files": files, "plugins": hashed, "versions": versions}
        return {key: value for key, value in entry.items() if value}

    def _closure(self, module: str, where: str) -> Closure:
        if module not in self._closures:
            if self.finder.find(module) is None:
                raise RecipeError(
                    f"there is no module {module!r}",
                    where=where,
                    mend=f"put it into {self.root.resolve()} or install the package that has it",
                )
            self._closures[module] = closure([module], self.finder, self.memory, [CORE])
        return self._closures[module]

    def _plugin(self, plugin: Plugin) -> tuple[str, Closure]:
        """A plugin's version and hash, and what its sources import from elsewhere."""
        if plugin.package not in self._plugin_entries:
            place = _source_of(plugin)
            files = list(files_below(place))
            names = {name for file in files for name in self._imported_by(file, place.parent)}
            label = f"{plugin.distribution} {plugin.version}, {hash_tree(files, place.parent)}"
            theirs = closure(names, self.finder, self.memory, [CORE, plugin.package])
            theirs.missing.clear()
            self._plugin_entries[plugin.package] = label, theirs
        return self._plugin_entries[plugin.package]

    def _imported_by(self, file: Path, folder: Path) -> Iterable[str]:
        if file.suffix != ".py":
            return ()
        folders = (file.parent,) if file.name == "__init__.py" else ()
        return imported(Module(module_name(file, folder), file, folders), file.read_bytes(), self.memory)

    def _data_files(self, paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
        for path in paths:
            place = self.root / path
            if not place.exists():
                raise DataError(
                    f"there is no file {str(path)!r}",
                    where=f"{self.recipe.path}, data",
                    mend=f"put it into {self.root.resolve()}, or write its path from there",
                )
            yield from self._hashes(place, str(path))

    def _named_files(self, values: Any) -> Iterator[tuple[str, str]]:
        """The hashes of files that parameters name, and of folders that they name with a slash."""
        match values:
            case str() if values and "\0" not in values:
                with suppress(OSError):
                    place = self.root / values
                    if place.is_file() or ("/" in values and place.is_dir()):
                        yield from self._hashes(place, values)
            case Path():
                yield from self._named_files(f"{values}")
            case Mapping():
                for value in values.values():
                    yield from self._named_files(value)
            case list() | tuple():
                for value in values:
                    yield from self._named_files(value)

    def _hashes(self, place: Path, name: str) -> Iterator[tuple[str, str]]:
        for file in files_below(place):
            inside = file.relative_to(place).as_posix()
            yield (name if inside == "." else f"{name.rstrip('/')}/{inside}"), self.memory.hash_of(file)

    def _distribution(self, module: str) -> str:
        """The distribution that has a top-level module, or nothing if none says so."""
        for guess in (module.replace("_", "-"), str(self.memory.fact(f"distribution {module}") or "")):
            if guess and version_of(guess):
                return guess
        found = self._distributions.get(module, [""])[0]
        if found:
            self.memory.note(f"distribution {module}", found)
        return found

    @cached_property
    def _distributions(self) -> Mapping[str, list[str]]:
        """Read from every installed distribution, which takes a while."""
        return packages_distributions()


def machine() -> Entry:
    """What times depend on: processor, accelerator, system and runtimes."""
    runtimes = {name: version_of(name) for name in RUNTIMES if version_of(name)}
    found: Entry = {
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "processor": processor(),
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": runtimes,
    }
    if accelerators := sorted(_accelerators()):
        found["accelerators"] = accelerators
    return found


def processor() -> str:
    """The processor's model, as the system calls it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in {"model name", "cpu model", "hardware"}:
                return value.strip()
    return platform.processor() or "unknown"


def _accelerators() -> Iterator[str]:
    """The models of NVIDIA's cards, as their driver lists them."""
    for file in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        with suppress(OSError):
            for line in file.read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "Model":
                    yield value.strip()


@cache
def version_of(distribution: str) -> str:
    """The version of an installed distribution, or nothing; read once per process."""
    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):
        return ""


def to_yaml(content: Entry) -> str:
    """Block style, the same text for the same content."""
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 4096
    stream = StringIO()
    writer.dump(content, stream)
    return stream.getvalue()


def _within(*steps: Step) -> dict[str, str]:
    """The import strings that the parts of some steps resolve, with the place of each."""
    return {text: f"pipeline.{step.name}" for step in steps for part in step.parts for text in part.imports()}


def _place(step: Step) -> str:
    return f"pipeline.{step.name}.model.factory" if step.model is not None else "model.factory"


def _source_of(plugin: Plugin) -> Path:
    """The folder of a plugin's package, or its file if it is a single one or lies in a namespace."""
    name = str(plugin.module.__name__) if plugin.module is not None else plugin.package
    file = Path(str(getattr(plugin.module, "__file__", None)))
    depth = name.count(".") + (file.stem == "__init__")
    if depth == 0:
        return file
    top = file.parents[depth - 1]
    return top if (top / "__init__.py").is_file() else file.parent


def _merge(found: Closure, more: Closure) -> None:
    found.own.update(more.own)
    found.packages.update(more.packages)
    found.missing.update(more.missing)


def _sorted(value: Any) -> Any:
    return {key: _sorted(entry) for key, entry in sorted(value.items())} if isinstance(value, dict) else value


def main() -> None:
    """Write step.lock.yaml of the recipe in the working directory; an error leaves the old one.

    Also lays `artifacts/none`, the empty folder on which steps without an input or teacher depend.
    """
    with ending_with_status():
        workspace = Workspace.here()
        write_text(workspace.lock, to_yaml(lock(read_recipe(workspace.params), workspace)))
        write_text(workspace.artifact("none") / ".gitkeep", "")


if __name__ == "__main__":
    main()
