"""Import strings, `package.module:attribute`: the door through which a user's own code comes in."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from compress_core.errors import CompressError, suggest


def stopped(failure: BaseException) -> bool:
    """Whether an exit is a signal's, which has a status above 128, and not that of the code which happened to run."""
    return isinstance(failure, SystemExit) and isinstance(failure.code, int) and failure.code > 128


def split_import(text: str, error: type[CompressError], where: str) -> tuple[str, str]:
    """Split `package.module:attribute` into its two halves."""
    module, _, attribute = text.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not all(name.isidentifier() for name in names):
        raise error(f"{text!r} is no import string", where=where, mend="write package.module:attribute")
    return module, attribute


def resolve(text: str, error: type[CompressError], where: str) -> Any:
    """Import what an import string names, from the working directory or the environment.

    Raises:
        CompressError: of the type `error`, placed at `where`.
    """
    module_name, attribute = split_import(text, error, where)
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is not None and f"{module_name}.".startswith(f"{missing.name}."):
            raise error(
                f"{text!r} does not resolve: there is no module {missing.name!r}",
                where=where,
                mend=f"put it into {here} or install the package that has it",
            ) from missing
        raise error(
            f"{text!r} does not resolve: its module needs {missing.name!r}", where=where, mend="install that package"
        ) from missing
    except (Exception, SystemExit) as failure:
        if stopped(failure):
            raise
        raise error(
            f"{text!r} does not resolve: {module_name} fails on import with {failure!r}",
            where=where,
            mend=f"`python -c 'import {module_name}'` shows where",
        ) from failure
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise error(f"{text!r} does not resolve: no {name!r} there", where=where, mend=suggest(name, dir(found)))
        found = getattr(found, name)
    return found
