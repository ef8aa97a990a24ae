"""Plain values in a manifest: numbers, strings, number formats, and lists, tuples and mappings of them.

JSON has no tuples, no number formats and no number that is not finite: these are mappings with one key, such as
`{"tuple": [1, 2]}` and `{"float": "inf"}`, and a mapping is the value of the key `dict`.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

import torch

from compress_core.errors import ArtifactError


def is_plain(value: Any) -> bool:
    """Whether a value can stand in a manifest."""
    match value:
        case None | bool() | int() | float() | str() | torch.dtype():
            return True
        case tuple() | list():
            return all(map(is_plain, value))
        case dict():
            return all(isinstance(key, str) and is_plain(entry) for key, entry in value.items())
        case _:
            return False


def encode(value: Any, path: str = "") -> Any:
    """A plain value as JSON from which `decode` makes the same value."""
    match value:
        case float() if not isfinite(value):
            return {"float": str(float(value))}
        case None | bool() | int() | float() | str():
            return value
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case list():
            return [encode(entry, path) for entry in value]
        case tuple():
            return {"tuple": [encode(entry, path) for entry in value]}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: encode(entry, path) for key, entry in value.items()}}
        case _:
            raise ArtifactError(
                f"the module {path!r} has an argument of type {type(value).__name__}",
                mend="keep only numbers, strings and tuples of them",
            )


def same(one: Any, other: Any) -> bool:
    """Whether two values are one in a manifest; NaN is NaN, and 1, 1.0 and True are three values."""
    if type(one) is not type(other) or not (is_plain(one) and is_plain(other)):
        return False
    first, second = (json.dumps(encode(value), sort_keys=True) for value in (one, other))
    return first == second


def decode(value: Any) -> Any:
    """The value that `encode` was given."""
    match value:
        case {"tuple": entries}:
            return tuple(decode(entry) for entry in entries)
        case {"dict": entries}:
            return {key: decode(entry) for key, entry in entries.items()}
        case {"dtype": name}:
            return dtype_named(name)
        case {"float": text}:
            return float(text)
        case list():
            return [decode(entry) for entry in value]
        case _:
            return value


def dtype_named(name: str) -> torch.dtype:
    """A number format by its name in torch, such as `int8`."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ArtifactError(f"unknown number format {name!r}")
    return found
