"""What goes into and comes out of a network, as a flat row of tensors and a tree that JSON can hold.

A tree says how the tensors of a value hang together: `{"tensor": 0}` is the first of the row, and beside it
there are `{"tuple": [...]}`, `{"list": [...]}`, `{"dict": {...}}`, `{"record": {...}}` for a dataclass, and
`{"value": ...}` for None, numbers and strings. Keys are taken in their sorted order.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from compress_core.errors import ModelError

Tree = dict[str, Any]

SIGNATURE = "compress"
"""The entry of an exported file's metadata that holds its signature."""


@dataclass(frozen=True)
class Signature:
    """How an exported network is called, as the file itself tells."""

    parameters: list[str]
    """What the forward calls its positional arguments."""
    inputs: Tree
    output: Tree
    takes: list[dict[str, Any]] = field(default_factory=list)
    """Name, dtype and shape of each tensor that goes in; a free axis has a name instead of a size."""
    gives: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    """The largest sizes of free axes that the network takes, where it has a limit."""

    def to_json(self) -> str:
        """The same text for the same signature."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Read what `to_json` has written."""
        return cls(**json.loads(text))

    def about(self) -> dict[str, Any]:
        """What a manifest tells of the file."""
        found: dict[str, Any] = {"inputs": self.takes, "outputs": self.gives}
        return found | ({"limits": self.limits} if self.limits else {})


class Record(dict[str, Any]):
    """What stands for a dataclass: its fields as entries and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def flatten(value: Any, tensors: list[Tensor], place: str) -> Tree:
    """Append the tensors of a value to `tensors` and return its tree.

    Raises:
        ModelError: it holds something that no runtime could take or give; the message names the place.
    """
    match value:
        case Tensor():
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        case None | bool() | int() | float() | str():
            return {"value": value}
        case Mapping() if all(isinstance(key, str) for key in value):
            return {"dict": {key: flatten(value[key], tensors, f"{place}.{key}") for key in sorted(value)}}
        case tuple() | list():
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [flatten(entry, tensors, f"{place}[{index}]") for index, entry in enumerate(value)]}
        case _ if is_dataclass(value) and not isinstance(value, type):
            names = sorted(field.name for field in fields(value))
            return {"record": {name: flatten(getattr(value, name), tensors, f"{place}.{name}") for name in names}}
        case _:
            raise ModelError(
                f"{place} holds an object of type {type(value).__name__}, which cannot be exported",
                mend="take and give tensors, numbers, and tuples, lists, dictionaries and dataclasses of them",
            )


def rebuild(tree: Tree, tensors: Sequence[Tensor]) -> Any:
    """The value of a tree; a dataclass becomes a `Record`."""
    match tree:
        case {"tensor": index}:
            return tensors[index]
        case {"dict": entries}:
            return {key: rebuild(entry, tensors) for key, entry in entries.items()}
        case {"record": entries}:
            return Record({key: rebuild(entry, tensors) for key, entry in entries.items()})
        case {"tuple": entries}:
            return tuple(rebuild(entry, tensors) for entry in entries)
        case {"list": entries}:
            return [rebuild(entry, tensors) for entry in entries]
        case _:
            return tree["value"]


def refill(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same value with other tensors, taken in the order in which `flatten` lists them."""
    match value:
        case Tensor():
            return next(tensors)
        case Mapping():
            filled = {key: refill(value[key], tensors) for key in sorted(value)}
            return {key: filled[key] for key in value}
        case tuple() if hasattr(value, "_fields"):
            return type(value)(*(refill(entry, tensors) for entry in value))
        case tuple() | list():
            return type(value)(refill(entry, tensors) for entry in value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            return type(value)(**{name: refill(getattr(value, name), tensors) for name in _sorted_fields(value)})
        case _:
            return value


def _sorted_fields(value: Any) -> list[str]:
    return sorted(field.name for field in fields(value))


def parameter_names(network: nn.Module) -> list[str]:
    """What the forward calls its positional arguments."""
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    found = inspect.signature(network.forward).parameters.values()
    return [parameter.name for parameter in found if parameter.kind in kinds]


def positional_names(parameters: Sequence[str], count: int) -> list[str]:
    """A name for each of `count` positional arguments; those beyond the parameters are numbered."""
    return [*parameters[:count], *(f"input_{index}" for index in range(len(parameters), count))]


def bind(parameters: Sequence[str], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name; those that are None are left out, as if they were not given."""
    named = dict(zip(positional_names(parameters, len(arguments)), arguments, strict=True)) | dict(keywords)
    return {name: value for name, value in named.items() if value is not None}


def input_names(tree: Tree) -> list[str]:
    """A name for each tensor of the arguments: its own key where that is unique, else its whole path."""
    paths = [path for _, path in sorted(_paths(tree, ()))]
    last = [path[-1] for path in paths]
    return [path[-1] if last.count(path[-1]) == 1 else ".".join(path) for path in paths]


def output_names(tree: Tree) -> list[str]:
    """A name for each tensor of the output."""
    paths = [path for _, path in sorted(_paths(tree, ()))]
    return [".".join(("output", *path)) if not path or path[0].isdigit() else ".".join(path) for path in paths]


def _paths(tree: Tree, path: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    match tree:
        case {"tensor": index}:
            yield index, path
        case {"dict": entries} | {"record": entries}:
            for key, entry in entries.items():
                yield from _paths(entry, (*path, key))
        case {"tuple": entries} | {"list": entries}:
            for index, entry in enumerate(entries):
                yield from _paths(entry, (*path, str(index)))
