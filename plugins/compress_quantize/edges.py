"""Where the quantizers go: one for every value that an integer kernel reads or writes.

The network is walked container by container without running it. Each value knows what made it and who uses it:

    layer -> [BatchNorm] -> [ReLU]      one kernel: only its end is quantized; the BatchNorm has to be over the
                                        layer's outputs, which behind a linear layer only (N, out) has on axis 1
    add, cat                            quantized at every input and at the output (behind its ReLU)
    max-pool, reshape, flatten, ...     stay on the grid of what they read
    mean pool, pad, slice               take integers to integers, on a grid of their own

A value that only one layer reads is quantized by that layer's own quantizer; any other by a call behind the
node that makes it. What leaves the network stays real, and so does whatever no layer or sum asks for.
Source of the pattern: the fusion rules of onnxruntime's QDQ transformers; cost: one walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from compress_quantize.graph import Node, references

_RECTIFIERS = {"relu", "relu_", "torch.relu", "relu6"}
_SAME_GRID = {
    *("flatten", "reshape", "view", "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "dropout"),
    *("torch.flatten", "torch.reshape", "torch.transpose", "torch.permute", "torch.squeeze", "torch.unsqueeze"),
    *("max_pool1d", "max_pool2d", "max_pool3d"),
}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SAME_GRID_TYPES = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Flatten, nn.Unflatten, *_DROPOUTS)
_MEANS = {
    *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
}
_POOLS = {*_MEANS, "pad", "getitem"}
_POOL_TYPES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_SUMS = {"add", "iadd", "add_", "torch.add"}
_LINEAR_TYPES = (nn.ReLU, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, *_DROPOUTS, *_POOL_TYPES)
_LINEAR = {
    *("relu", "relu_", "torch.relu", "dropout", "max_pool1d", "max_pool2d", "max_pool3d"),
    *_MEANS,
}
_FLATTEN = {"flatten", "torch.flatten"}
_JOINTS = {"torch.cat", "torch.concat"}
_FOLDABLE = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
"""The rank of a layer's output (N, out, ...), whose axis 1, over which a BatchNorm works, is the layer's outputs."""


@dataclass(eq=False)
class Value:
    """A tensor in the network: what made it, from what, and who uses it."""

    kind: str
    """input, layer, norm, rectifier, same (grid), pool, joint or other."""
    container: str
    """Path of the container in whose nodes it is made."""
    node: str
    module: str = ""
    """Path of the module that made it, if one did."""
    function: str = ""
    """Name of the function or method that made it, if one did."""
    sources: list[Value] = field(default_factory=list)
    users: list[Value] = field(default_factory=list)
    leaves: bool = False
    """Whether it leaves the part of the network that was walked."""


@dataclass
class Edges:
    """Where quantizers go and what belongs together."""

    quantizers: dict[str, list[str]] = field(default_factory=dict)
    """For the path of a container, the nodes that a quantizer follows."""
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)
    """For the path of a layer, the container and the node whose quantizer its input comes from."""
    norms: dict[str, str] = field(default_factory=dict)
    """For the path of a layer, the path of the BatchNorm behind it."""
    rectified: set[str] = field(default_factory=set)
    """Paths of the layers with a ReLU right behind them and their BatchNorm."""
    readers: dict[str, str] = field(default_factory=dict)
    """For the path of a layer, that of the only layer that reads it, channel by channel, with nothing between them
    but what takes a multiple of its input to the same multiple: ReLU, pools, flatten, dropout."""
    sums: set[tuple[str, str]] = field(default_factory=set)
    """The containers and nodes that a sum reads or writes."""


def find_edges(
    model: nn.Module,
    traced: Mapping[str, list[Node]],
    layers: set[str],
    calls: Mapping[str, int],
    ranks: Mapping[str, int],
) -> Edges:
    """Decide where the quantizers go.

    Args:
        model: the network.
        traced: the nodes of each container that could be traced, by path.
        layers: paths of the layers that are quantized.
        calls: how often each module is called in one forward.
        ranks: how many axes the output of each layer has.
    """
    walk = _Walk(model, traced, layers, calls)
    for path in traced:
        if path not in walk.entered and (calls.get(path, 0) > 1 or not walk.inside_traced(path)):
            walk.enter(path, None)
    return _decide(walk, ranks)


class _Walk:
    """Collects the values of the network."""

    def __init__(
        self, model: nn.Module, traced: Mapping[str, list[Node]], layers: set[str], calls: Mapping[str, int]
    ) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.traced, self.layers, self.calls = traced, layers, calls
        self.values: list[Value] = []
        self.entered: set[str] = set()
        self.called = {
            _join(path, target)
            for path, nodes in traced.items()
            for _, op, target, _, _ in nodes
            if op == "call_module"
        }

    def inside_traced(self, path: str) -> bool:
        """Whether a traced container calls the module."""
        return path in self.called

    def enter(self, container: str, inputs: Mapping[str, Any] | None) -> Any:
        """Walk the nodes of a container; returns its output with values in the place of tensors."""
        self.entered.add(container)
        results: dict[str, Any] = {}
        for node in self.traced[container]:
            name, op, target, arguments, keywords = node
            if op == "output":
                return _filled(arguments[0], results) if inputs is not None else self._leave(arguments, results)
            if op == "placeholder":
                given = (inputs or {}).get(target)
                results[name] = given if isinstance(given, Value) else self._new("input", container, name)
                continue
            sources = [value for ref in references([arguments, keywords]) for value in _values(results[ref])]
            path = _join(container, target) if op == "call_module" else ""
            if op == "call_module" and path in self.traced and self.calls.get(path, 0) == 1:
                results[name] = self._call(path, node, results, container, sources)
            elif isinstance(self.modules.get(path), nn.Identity) and path and len(sources) == 1:
                results[name] = sources[0]
            else:
                kind = self._kind(op, target, path, sources)
                value = results[name] = self._new(kind, container, name, path, sources)
                value.function = "" if path else target
        return None

    def _call(self, path: str, node: Node, results: Mapping[str, Any], container: str, sources: list[Value]) -> Any:
        arguments = [_filled(value, results) for value in node[3]]
        names = [target for _, op, target, _, _ in self.traced[path] if op == "placeholder"]
        given = dict(zip(names, arguments, strict=False))
        given |= {key: _filled(value, results) for key, value in node[4].items()}
        for value in given.values():
            if not isinstance(value, Value):
                _mark_leaving(value)
        output = self.enter(path, given)
        if isinstance(output, Value):
            return output
        _mark_leaving(output)
        return self._new("other", container, node[0], path, sources)

    def _leave(self, arguments: list[Any], results: Mapping[str, Any]) -> None:
        _mark_leaving([results[ref] for ref in references(arguments)])

    def _new(self, kind: str, container: str, node: str, module: str = "", sources: list[Value] | None = None) -> Value:
        value = Value(kind, container, node, module, sources=sources or [])
        for source in value.sources:
            source.users.append(value)
        self.values.append(value)
        return value

    def _kind(self, op: str, target: str, path: str, sources: list[Value]) -> str:
        if op == "call_module":
            return self._kind_of_module(path)
        if op == "get_attr":
            return "other"
        if target in _SUMS:
            return "joint" if len(sources) == 2 else "other"
        kinds = {"joint": _JOINTS, "rectifier": _RECTIFIERS, "same": _SAME_GRID, "pool": _POOLS}
        return next((kind for kind, names in kinds.items() if target in names), "other")

    def _kind_of_module(self, path: str) -> str:
        if path in self.layers:
            return "layer"
        match self.modules[path]:
            case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() as norm if norm.running_mean is not None:
                return "norm" if self.calls.get(path, 0) == 1 else "other"
            case nn.ReLU() | nn.ReLU6():
                return "rectifier"
            case module if isinstance(module, _SAME_GRID_TYPES):
                return "same"
            case module if isinstance(module, _POOL_TYPES):
                return "pool"
        return "other"


def _join(container: str, target: str) -> str:
    return f"{container}.{target}" if container else target


def _filled(value: Any, results: Mapping[str, Any]) -> Any:
    match value:
        case {"node": str(name)}:
            return results[name]
        case {"items": items}:
            return {key: _filled(entry, results) for key, entry in items.items()}
        case list() | tuple():
            return type(value)(_filled(entry, results) for entry in value)
        case _:
            return value


def _values(found: Any) -> Iterator[Value]:
    match found:
        case Value():
            yield found
        case dict():
            for entry in found.values():
                yield from _values(entry)
        case list() | tuple():
            for entry in found:
                yield from _values(entry)


def _mark_leaving(found: Any) -> None:
    for value in _values(found):
        value.leaves = True


def _decide(walk: _Walk, ranks: Mapping[str, int]) -> Edges:
    edges = Edges()
    once = {path for path in walk.layers if walk.calls.get(path, 0) == 1}
    layers = [value for value in walk.values if value.module in once and value.sources]
    ends: dict[Value, Value] = {}
    for layer in layers:
        over_outputs = ranks[layer.module] == _FOLDABLE[type(walk.modules[layer.module])]
        norm = _only_user(layer, "norm") if over_outputs else None
        if norm is not None:
            edges.norms[layer.module] = norm.module
        ends[layer] = _end_of(norm or layer)
        if ends[layer] is not (norm or layer) and _is_relu(ends[layer], walk.modules):
            edges.rectified.add(layer.module)
        if reader := _reader_by_channel(norm or layer, once, walk.modules):
            edges.readers[layer.module] = reader
    wanted = dict.fromkeys(_origin(layer.sources[0]) for layer in layers)
    shared: set[Value] = set()
    for joint in _integer_joints(walk.values, set(edges.norms.values()), once):
        shared.update((*map(_origin, joint.sources), _end_of(joint)))
    edges.sums = {(value.container, value.node) for value in shared}
    for layer, end in ends.items():
        if not _leaves(end) and not isinstance(walk.modules[layer.module], nn.Linear):
            wanted[end] = None
            if not _readers(end, once) or _has_other_users(end, once):
                shared.add(end)
    for value in walk.values:
        readers = _readers(value, once) if value in wanted or value in shared else []
        if value in shared or len(readers) > 1:
            edges.quantizers.setdefault(value.container, []).append(value.node)
            edges.sources |= {reader: (value.container, value.node) for reader in readers}
    return edges


def _is_relu(value: Value, modules: Mapping[str, nn.Module]) -> bool:
    return value.function in {"relu", "relu_", "torch.relu"} or isinstance(modules.get(value.module), nn.ReLU)


def _reader_by_channel(value: Value, once: set[str], modules: Mapping[str, nn.Module]) -> str | None:
    """The layer of which `Edges.readers` speaks, if there is one."""
    while len(value.users) == 1 and not value.leaves:
        (value,) = value.users
        if value.module in once:
            return value.module
        module = modules.get(value.module) if value.module else None
        linear = isinstance(module, _LINEAR_TYPES) or (isinstance(module, nn.Flatten) and module.start_dim == 1)
        if not (linear or value.function in _LINEAR | _FLATTEN):
            return None
    return None


def _integer_joints(values: list[Value], folded: set[str], once: set[str]) -> list[Value]:
    """The sums whose every input is read or written by an integer kernel, and whose output does not leave."""
    found: list[Value] = []
    integer: set[Value] = set()
    for value in values:
        match value.kind:
            case "layer":
                born = True
            case "norm":
                born = value.module in folded
            case "rectifier" | "same" | "pool":
                born = all(source in integer for source in value.sources)
            case "joint":
                born = all(source in integer or _readers(_origin(source), once) for source in value.sources)
                if born and not _leaves(_end_of(value)):
                    found.append(value)
            case _:
                born = False
        if born:
            integer.add(value)
    return found


def _only_user(value: Value, kind: str) -> Value | None:
    if len(value.users) == 1 and value.users[0].kind == kind and not value.leaves:
        return value.users[0]
    return None


def _end_of(value: Value) -> Value:
    """The value behind the rectifier that a kernel can take in, or the value itself."""
    return _only_user(value, "rectifier") or value


def _origin(value: Value) -> Value:
    """The value whose grid this one is on."""
    while value.kind == "same" and value.sources:
        value = value.sources[0]
    return value


def _ends_of_use(value: Value) -> Iterator[Value]:
    """The users of a value, and of those that stay on its grid."""
    for user in value.users:
        if user.kind == "same":
            yield from _ends_of_use(user)
        else:
            yield user


def _readers(value: Value, once: set[str]) -> list[str]:
    """The layers that read a value, directly or behind something that stays on its grid."""
    return list(dict.fromkeys(user.module for user in _ends_of_use(value) if user.module in once))


def _has_other_users(value: Value, once: set[str]) -> bool:
    return any(user.module not in once for user in _ends_of_use(value))


def _leaves(value: Value) -> bool:
    return value.leaves or any(_leaves(user) for user in value.users if user.kind == "same")
