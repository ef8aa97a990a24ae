"""From the forward of a container to the nodes of a `Graph`: torch.fx, with the children as leaves.

torch.fx fixes what Python decides while it traces. So a container is traced as it trains and as it is
evaluated, and one whose forward differs is left as it is, as is one with control flow on its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from compress_quantize.graph import Graph, Node
from compress_quantize.operations import ATTRIBUTES, FUNCTIONS, METHODS

_NAMES = {id(function): name for name, function in FUNCTIONS.items()}


class Untraceable(Exception):
    """Why a container cannot be a graph, in a few words."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace(container: nn.Module) -> list[Node]:
    """The nodes of a container's forward.

    Raises:
        Untraceable: it has control flow, an operation that is not allowed, or differs while training.
    """
    if isinstance(container, Graph):
        return container.nodes
    mode = container.training
    try:
        found = [_nodes(container, training) for training in (False, True)]
    finally:
        container.training = mode
    if found[0] != found[1]:
        raise Untraceable("its forward differs while training")
    return found[0]


def _nodes(container: nn.Module, training: bool) -> list[Node]:
    container.training = training
    before = set(vars(container))
    try:
        graph = _Tracer().trace(container)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise Untraceable(f"torch.fx cannot trace it: {reason}") from error
    finally:
        constants = set(vars(container)) - before
        for name in constants:
            del container.__dict__[name]
    if constants:
        raise Untraceable("its forward makes a constant tensor")
    return [_node(node) for node in graph.nodes]


def _node(node: fx.Node) -> Node:
    arguments, keywords = _data(node.args), _data(node.kwargs)["items"]
    target = node.target
    if node.op == "placeholder":
        if str(target).startswith("*"):
            raise Untraceable("its forward takes a varying number of arguments")
    elif node.op == "call_function":
        if id(target) not in _NAMES:
            raise Untraceable(f"it calls {getattr(target, '__name__', target)}")
        target = _NAMES[id(target)]
        if target == "getattr" and arguments[1] not in ATTRIBUTES:
            raise Untraceable(f"it reads {arguments[1]!r} of a result")
        if target == "dropout" and isinstance(keywords.get("training"), bool):
            keywords = {**keywords, "training": {"training": True}}
    elif node.op == "call_method" and target not in METHODS:
        raise Untraceable(f"it calls the method {target!r}")
    return [node.name, node.op, str(target), list(arguments), keywords]


def _data(value: Any) -> Any:
    match value:
        case fx.Node():
            return {"node": value.name}
        case slice():
            return {"slice": [_data(entry) for entry in (value.start, value.stop, value.step)]}
        case Mapping() if all(isinstance(key, str) for key in value):
            return {"items": {key: _data(entry) for key, entry in value.items()}}
        case tuple():
            return tuple(_data(entry) for entry in value)
        case list():
            return [_data(entry) for entry in value]
        case None | bool() | int() | float() | str() | torch.dtype():
            return value
        case _ if value is ...:
            return {"ellipsis": True}
        case _:
            raise Untraceable(f"it passes on a {type(value).__name__}")
