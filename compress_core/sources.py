"""The source files that importing a module would run, found without importing anything.

Modules are looked up in the workspace and then along `sys.path`, as `python -m` does; every import statement
counts, conditional ones and those inside functions too, and so does `import_module("a.literal")`. What lies
in site-packages or in the standard library is not followed: of those only the top-level name is noted. A name
that is put together while the program runs cannot be seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from compress_core.errors import RecipeError
from compress_core.hashes import Memory, hash_bytes

_INSTALLED = {"site-packages", "dist-packages"}
_EXPORTED = -1
"""The level of the names in `__all__`, which `from package import *` imports from the package itself."""


@dataclass(frozen=True)
class Module:
    """Where a module lies: its file, None for a namespace; and the folders of its children, if it has any."""

    name: str
    file: Path | None
    folders: tuple[Path, ...] = ()

    @property
    def package(self) -> str:
        """What its relative imports start from."""
        return self.name if self.folders else self.name.rpartition(".")[0]

    @property
    def installed(self) -> bool:
        """Whether it came with a distribution or with Python, rather than being somebody's own work in place."""
        if self.file is not None:
            return bool(_INSTALLED & set(self.file.parts)) or not self.file.is_file()
        return all(_INSTALLED & set(folder.parts) for folder in self.folders)


@dataclass(frozen=True)
class Closure:
    """What some modules import, in the end."""

    own: dict[str, str] = field(default_factory=dict)
    """Modules whose source is followed, with the hash of each."""
    packages: set[str] = field(default_factory=set)
    """Top-level names of what is installed."""
    missing: set[str] = field(default_factory=set)
    """Top-level names that nothing has."""


class Finder:
    """Finds modules by name without importing them or their parents."""

    def __init__(self, root: Path) -> None:
        self._places = [root.resolve(), *(Path(entry) for entry in sys.path if entry)]
        self._known: dict[str, Module | None] = {}

    def find(self, name: str) -> Module | None:
        """A module, or None if there is none."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Module | None:
        parent, _, own = name.rpartition(".")
        if parent:
            above = self.find(parent)
            return None if above is None else _look_up(name, own, above.folders)
        if name in sys.stdlib_module_names:
            shadow = _look_up(name, own, self._places[:1])
            return shadow if shadow is not None and shadow.file is not None else Module(name, None)
        return _look_up(name, own, self._places) or _ask_python(name)


def _look_up(name: str, own: str, places: Iterable[Path]) -> Module | None:
    """The first regular module in the places, or else a namespace of all the folders with its name."""
    portions = []
    for place in places:
        folder = place / own
        for suffix in [*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES]:
            if (init := folder / f"__init__{suffix}").is_file():
                return Module(name, init, (folder,))
            if (file := place / f"{own}{suffix}").is_file():
                return Module(name, file)
        if folder.is_dir():
            portions.append(folder)
    return Module(name, None, tuple(portions)) if portions else None


def _ask_python(name: str) -> Module | None:
    """A top-level module that only an import hook knows, such as some editable installs."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file = Path(spec.origin) if spec.origin is not None and spec.has_location else None
    return Module(name, file, tuple(map(Path, spec.submodule_search_locations or ())))


def closure(roots: Iterable[str], finder: Finder, memory: Memory, skip: Iterable[str] = ()) -> Closure:
    """Follow the imports of some modules.

    Args:
        roots: names of modules.
        finder: where they are looked for.
        memory: keeps what a source imports, under the hash of its text.
        skip: top-level names that somebody else accounts for.

    Raises:
        RecipeError: a source that would be imported is no Python, with its file and line.
    """
    found = Closure()
    left_out = set(skip)
    waiting = list(roots)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        top, _, _ = name.partition(".")
        if top in left_out:
            continue
        above = finder.find(top)
        if above is None:
            found.missing.add(top)
            continue
        if above.file is None and not above.folders:
            continue
        module = above if above.file is not None and above.installed else finder.find(name)
        if module is None or name != top:
            waiting.append(name.rpartition(".")[0] or top)
        if module is not None and module.installed:
            found.packages.add(top)
        elif module is not None and module.file is not None:
            content = module.file.read_bytes()
            found.own[name] = hash_bytes(content)
            if module.file.suffix in SOURCE_SUFFIXES:
                waiting.extend(imported(module, content, memory))
    return found


def imported(module: Module, content: bytes, memory: Memory) -> Iterator[str]:
    """The modules that a source may import; a name after `import` may be a module or something in one.

    Raises:
        RecipeError: the source is no Python.
    """
    key = f"imports {hash_bytes(content)}"
    statements = memory.fact(key)
    if statements is None:
        statements = imports_in(content, module.file)
        memory.note(key, statements)
    for level, name, names in statements:
        base = module.name if level == _EXPORTED else _absolute(module.package, level, name)
        if base is None or (level == _EXPORTED and not module.folders):
            continue
        if base:
            yield base
        for child in names:
            yield f"{base}.{child}" if base else child


def _absolute(package: str, level: int, name: str) -> str | None:
    """What a relative import names, or None if it leads out of its package."""
    if level == 0:
        return name
    parents = package.split(".") if package else []
    if level > len(parents):
        return None
    base = ".".join(parents[: len(parents) - level + 1])
    return f"{base}.{name}" if name else base


def imports_in(source: bytes, path: Path | None = None) -> list[list[object]]:
    """The import statements of a source, and its literal `__all__`, as `[level, module, names]`.

    Raises:
        RecipeError: it is no Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RecipeError(
            f"the source is no Python: {message}", where=f"{path}{line}", mend="correct it; the recipe's code needs it"
        ) from None
    found: list[list[object]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found.extend([0, alias.name, []] for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                found.append([level, module or "", [alias.name for alias in names if alias.name != "*"]])
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]):
                if call in {"import_module", "__import__"}:
                    bare = name.lstrip(".")
                    found.append([len(name) - len(bare), bare, []])
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List() | ast.Tuple() as value):
                exported = [entry.value for entry in value.elts if isinstance(entry, ast.Constant)]
                found.append([_EXPORTED, "", [entry for entry in exported if isinstance(entry, str)]])
    return found


def module_name(file: Path, folder: Path) -> str:
    """How a source file is imported from a folder on the path."""
    parts = file.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
