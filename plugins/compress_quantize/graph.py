"""A container whose forward is data: a list of allow-listed operations on its children.

`tracing.trace` turns the forward of a container into nodes, and `Graph` runs them. The children keep their
names and stay the same objects, so paths, hooks and training states on them survive.
A node is `[name, op, target, arguments, keywords]`; inside arguments `{"node": name}` is an earlier result,
`{"items": {...}}` a dictionary, `{"slice": [...]}` a slice, and `{"training": true}` the container's mode.
Nothing in it is code, so an artifact holds it as JSON.

Cost: a dictionary look-up per node and call; about 10 microseconds per operation.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from compress_core.masks import MARK
from compress_quantize.operations import ATTRIBUTES, FUNCTIONS, METHODS

_KEPT = {*vars(nn.Module()), MARK}

Node = list[Any]


class _Forward:
    """The forward of a graph, with the parameters of the container that was traced as its signature."""

    def __get__(self, graph: Graph | None, owner: type) -> Callable[..., Any]:
        if graph is None:
            return _forward
        bound = partial(_forward, graph)
        bound.__signature__ = signature_of(graph.nodes)  # type: ignore[attr-defined]
        return bound


def _forward(graph: Graph, *inputs: Any, **named: Any) -> Any:
    return run_nodes(graph, graph.nodes, inputs, named)


def signature_of(nodes: list[Node]) -> inspect.Signature:
    """The parameters of the container that was traced."""
    return inspect.Signature(
        [
            inspect.Parameter(
                target,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=default[0] if default else inspect.Parameter.empty,
            )
            for _, op, target, default, _ in nodes
            if op == "placeholder"
        ]
    )


class Graph(nn.Module):
    """Runs the nodes of a traced container on its children, which it adopts from the container it replaces."""

    adopts_children = True
    """In an artifact: its children and tensors are those of the container that the factory builds."""

    nodes: list[Node]

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__()
        self.nodes = nodes

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"nodes": self.nodes}

    forward = _Forward()
    """Whatever the traced container takes and gives."""

    def extra_repr(self) -> str:
        """How many operations it has."""
        return f"{sum(op.startswith('call') for _, op, *_ in self.nodes)} operations"


def become_graph(container: nn.Module, nodes: list[Node]) -> None:
    """Turn a container into a `Graph` in place: children, tensors, hooks and its place in the network stay."""
    for name in set(vars(container)) - _KEPT:
        del container.__dict__[name]
    container.__class__ = Graph
    container.nodes = nodes  # type: ignore[assignment]


def run_nodes(module: nn.Module, nodes: list[Node], inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Run nodes on the children of a module."""
    results: dict[str, Any] = {}
    positional = iter(inputs)
    for name, op, target, arguments, keywords in nodes:
        if op == "placeholder":
            results[name] = _input(target, arguments, positional, named)
            continue
        args = [_resolved(value, results, module.training) for value in arguments]
        if op == "output":
            return args[0]
        if op == "get_attr":
            results[name] = _tensor(module, target)
            continue
        kwargs = {key: _resolved(value, results, module.training) for key, value in keywords.items()}
        results[name] = _callee(module, op, target)(*args, **kwargs)
    raise AssertionError("a graph ends with its output")


def _input(name: str, default: list[Any], positional: Iterator[Any], named: Mapping[str, Any]) -> Any:
    for value in positional:
        return value
    if name in named:
        return named[name]
    if default:
        return default[0]
    raise TypeError(f"the forward of a traced container misses its argument {name!r}")


def _tensor(module: nn.Module, target: str) -> Tensor:
    path, _, name = target.rpartition(".")
    try:
        owner = module.get_submodule(path)
        found = {**owner._parameters, **owner._buffers}[name]
    except (AttributeError, KeyError):
        raise ValueError(f"a graph may not read {target!r}") from None
    assert found is not None
    return found


def _callee(module: nn.Module, op: str, target: str) -> Callable[..., Any]:
    if op == "call_module":
        return module.get_submodule(target)
    if op == "call_method" and target in METHODS:
        return operator.attrgetter(target)(Tensor)  # type: ignore[no-any-return]
    if op == "call_function" and target in FUNCTIONS:
        return _attribute if target == "getattr" else FUNCTIONS[target]
    raise ValueError(f"a graph may not call {target!r}")


def _attribute(value: Any, name: str) -> Any:
    if name not in ATTRIBUTES:
        raise ValueError(f"a graph may not read {name!r}")
    return getattr(value, name)


def _resolved(value: Any, results: Mapping[str, Any], training: bool) -> Any:
    match value:
        case {"node": name}:
            return results[name]
        case {"items": items}:
            return {key: _resolved(entry, results, training) for key, entry in items.items()}
        case {"slice": bounds}:
            return slice(*(_resolved(entry, results, training) for entry in bounds))
        case {"ellipsis": _}:
            return ...
        case {"training": _}:
            return training
        case list() | tuple():
            return type(value)(_resolved(entry, results, training) for entry in value)
        case _:
            return value


def references(value: Any) -> Iterator[str]:
    """The names of the nodes that arguments refer to."""
    match value:
        case {"node": str(name)}:
            yield name
        case dict():
            for entry in value.values():
                yield from references(entry)
        case list() | tuple():
            for entry in value:
                yield from references(entry)


def with_quantizers(nodes: list[Node], after: Iterable[str], suffix: str) -> list[Node]:
    """The nodes with a call of the child `NAME + suffix` behind each of the named ones, which all users then see."""
    behind = {name: f"{name}{suffix}" for name in after}
    found: list[Node] = []
    for name, op, target, arguments, keywords in nodes:
        found.append([name, op, target, _renamed(arguments, behind), _renamed(keywords, behind)])
        if name in behind:
            found.append([behind[name], "call_module", behind[name], [{"node": name}], {}])
    return found


def without(nodes: list[Node], children: Iterable[str]) -> list[Node]:
    """The nodes without the calls of some children, whose users see what went into them."""
    gone: dict[str, str] = {}
    left = set(children)
    found: list[Node] = []
    for name, op, target, arguments, keywords in nodes:
        inputs = _renamed(arguments, gone)
        if op == "call_module" and target in left:
            gone[name] = next(references(inputs))
        else:
            found.append([name, op, target, inputs, _renamed(keywords, gone)])
    return found


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    match value:
        case {"node": str(name)}:
            return {"node": names.get(name, name)}
        case dict():
            return {key: _renamed(entry, names) for key, entry in value.items()}
        case list() | tuple():
            return type(value)(_renamed(entry, names) for entry in value)
        case _:
            return value
