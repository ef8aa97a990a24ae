"""How a network's architecture differs from the one its factory builds, as data.

`differences(model, fresh)` walks both networks and lists edits; `apply_edits(fresh, edits)` makes a network
of the same shape. An edit is JSON:

    {"op": "replace", "path": "block.conv", "module": {"type", "arguments", "edits"}}
    {"op": "replace", "path": "members.1", "module": {"factory", "params", "edits"}}  a network of its own factory
    {"op": "adopt", "path": "block", "module": {"type", "arguments"}}  another type, with the children and tensors kept
    {"op": "alias", "path": "b", "same_as": "a"}            one module in two places
    {"op": "tensors", "path": "block", "tensors": {name: {"kind", "shape", "dtype"}}}
    {"op": "drop_tensor", "path": "block", "name": "bias"}
    {"op": "setattr", "path": "block", "name": "heads", "value": 3}
    {"op": "remove", "path": "block.skip"}
    {"op": "order", "path": "block", "names": ["1", "0"]}

A replaced module is built from its type's constructor arguments and then edited in the same way, children
included. A type with `adopts_children = True` takes over what the module that it replaces holds.
Types that may be built are an allow-list: torch.nn's own and those that plugins register. A whole network within
another, such as the member of a committee, is built by its own factory: `factories_in` lists these, and who
applies edits that someone else wrote must trust them first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from compress_core.errors import ArtifactError
from compress_core.factory import ORIGIN, build_model
from compress_core.plain_values import encode, is_plain, same
from compress_core.rebuilding import Edit, Types, adopt, construct

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_EMPTY_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLACEMENT = {"self", "device", "dtype"}


def qualified_name(kind: type) -> str:
    """How an edit calls a type of modules."""
    return f"{kind.__module__}.{kind.__qualname__}"


def torch_types() -> dict[str, type]:
    """Every module type of torch.nn."""
    found = {qualified_name(kind): kind for kind in vars(nn).values() if isinstance(kind, type)}
    extra = {qualified_name(kind): kind for kind in (nn.modules.linear.NonDynamicallyQuantizableLinear,)}
    return {
        name: kind for name, kind in (found | extra).items() if issubclass(kind, nn.Module) and kind is not nn.Module
    }


def differences(model: nn.Module, fresh: nn.Module, types: Types) -> list[Edit]:
    """List the edits that give `fresh` the architecture of `model`, which has the same type.

    Raises:
        ArtifactError: the difference cannot be represented; the message names the module.
    """
    if _adopts(model, fresh):
        return list(_adoption(model, fresh, "", types, {}))
    if type(model) is not type(fresh):
        return [{"op": "replace", "path": "", "module": _describe_type(model, "", types)}]
    return list(_walk(model, fresh, "", types, {}))


def _walk(module: nn.Module, fresh: nn.Module, path: str, types: Types, seen: dict[int, str]) -> Iterator[Edit]:
    """Edits of two modules of one type.

    `seen` holds the path at which each module of the model was met first, and each of the fresh network that
    stays: one of these that the factory has put into two places stays in the first of them only.
    """
    seen[id(module)] = path
    _refuse_hidden_state(module, fresh, path)
    yield from _attribute_edits(module, fresh, path)
    yield from _tensor_edits(module, fresh, path)
    for name in fresh._modules:
        if module._modules.get(name) is None and fresh._modules[name] is not None:
            yield {"op": "remove", "path": _join(path, name)}
    for name, child in module._modules.items():
        if child is None:
            continue
        place = _join(path, name)
        other = fresh._modules.get(name)
        if id(child) in seen:
            if other is None or _must_rebuild(child, other) or seen.get(id(other)) != seen[id(child)]:
                yield {"op": "alias", "path": place, "same_as": seen[id(child)]}
        elif other is not None and _adopts(child, other):
            seen[id(other)] = place
            yield from _adoption(child, other, place, types, seen)
        elif other is None or id(other) in seen or _must_rebuild(child, other):
            seen[id(child)] = place
            yield {"op": "replace", "path": place, "module": _describe(child, place, types)}
        else:
            seen[id(other)] = place
            yield from _walk(child, other, place, types, seen)
    yield from _order_edit(module, fresh, path)


def _order_edit(module: nn.Module, fresh: nn.Module, path: str) -> Iterator[Edit]:
    """Containers call their children in order, and new ones are put behind those that were there."""
    names = [name for name, child in module._modules.items() if child is not None]
    kept = [name for name in fresh._modules if name in names]
    if names != [*kept, *(name for name in names if name not in kept)]:
        yield {"op": "order", "path": path, "names": names}


def _adopts(module: nn.Module, fresh: nn.Module) -> bool:
    """Whether a module of another type has taken over the children and tensors of the fresh one."""
    return type(module) is not type(fresh) and getattr(type(module), "adopts_children", False) is True


def _adoption(module: nn.Module, fresh: nn.Module, path: str, types: Types, seen: dict[int, str]) -> Iterator[Edit]:
    name, arguments = _type_and_arguments(module, path, types)
    encoded = {key: encode(value, path) for key, value in arguments.items()}
    yield {"op": "adopt", "path": path, "module": {"type": name, "arguments": encoded}}
    yield from _walk(module, adopt(construct(types[name], arguments, path), fresh), path, types, seen)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _must_rebuild(module: nn.Module, fresh: nn.Module) -> bool:
    """Whether a module is another type, or one of torch's leaves with other constructor arguments."""
    if type(module) is not type(fresh):
        return True
    if isinstance(module, _EMPTY_CONTAINERS) or module._modules or qualified_name(type(module)) not in torch_types():
        return False
    arguments, others = _arguments(module), _arguments(fresh)
    return arguments != others and not same(arguments, others)


def _describe(module: nn.Module, path: str, types: Types) -> dict[str, Any]:
    """A module as what builds it, and what differs from a fresh one of these."""
    if (origin := module.__dict__.get(ORIGIN)) is not None:
        factory, params = origin
        fresh = build_model(factory, params, error=ArtifactError)
        if type(module) is type(fresh) or _adopts(module, fresh):
            edits = differences(module, fresh, types)
            return {"factory": factory, "params": encode(params, path), "edits": edits}
    return _describe_type(module, path, types)


def _describe_type(module: nn.Module, path: str, types: Types) -> dict[str, Any]:
    """A module as its type, constructor arguments and what differs from a fresh one of these."""
    name, arguments = _type_and_arguments(module, path, types)
    encoded = {key: encode(value, path) for key, value in arguments.items()}
    fresh = construct(types[name], arguments, path)
    try:
        edits = list(_walk(module, fresh, "", types, {}))
    except ArtifactError as error:
        raise ArtifactError(f"in the module {path!r}: {error.what}", mend=error.mend) from error.__cause__
    return {"type": name, "arguments": encoded, "edits": edits}


def _type_and_arguments(module: nn.Module, path: str, types: Types) -> tuple[str, dict[str, Any]]:
    _refuse_parametrization(module, path)
    name = qualified_name(type(module))
    if name not in types:
        raise ArtifactError(
            f"the module {path or 'at the root'!r} has the type {name}, which nothing can rebuild",
            mend="register the type in a plugin's `register_modules` hook, or build it in the model's factory",
        )
    arguments = _arguments(module)
    if arguments is None:
        raise ArtifactError(
            f"the module {path!r} of type {name} does not keep its constructor's arguments",
            mend="give the type a method `arguments()` that returns them",
        )
    return name, arguments


def _arguments(module: nn.Module) -> dict[str, Any] | None:
    """The constructor arguments of a module, without those at their defaults; None if it does not keep them."""
    match module:
        case nn.Sequential() | nn.ModuleList() | nn.ModuleDict():
            return {}
        case nn.RNNBase():
            signature = inspect.signature(nn.RNNBase.__init__)
            left_out = {*_PLACEMENT, "mode"}
        case _:
            if callable(own := getattr(module, "arguments", None)):
                return dict(own())
            signature = inspect.signature(type(module).__init__)
            left_out = _PLACEMENT
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if (
            name in left_out
            or name.startswith("_")
            or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        ):
            continue
        known, value = _argument(module, name)
        if not known:
            return None
        if value != parameter.default or isinstance(value, bool) != isinstance(parameter.default, bool):
            found[name] = value
    if isinstance(module, nn.RNN) and module.nonlinearity != "tanh":
        found["nonlinearity"] = module.nonlinearity
    return found


def _argument(module: nn.Module, name: str) -> tuple[bool, Any]:
    """Whether a module keeps a constructor argument, and its value; a tensor means that it was asked for."""
    if isinstance(module, nn.MultiheadAttention) and name in {"bias", "add_bias_kv"}:
        return True, (module.in_proj_bias if name == "bias" else module.bias_k) is not None
    if not hasattr(module, name):
        return False, None
    value = getattr(module, name)
    if isinstance(value, Tensor) or (name == "bias" and value is None):
        return True, value is not None
    return True, value


def _attribute_edits(module: nn.Module, fresh: nn.Module, path: str) -> Iterator[Edit]:
    fresh_attributes = _attributes(fresh)
    for name, value in _attributes(module).items():
        if is_plain(value):
            if name not in fresh_attributes or not same(fresh_attributes[name], value):
                yield {"op": "setattr", "path": path, "name": name, "value": encode(value, path)}
        elif name not in fresh_attributes:
            raise ArtifactError(
                f"the module {path or 'at the root'!r} has got an attribute {name!r} of type {type(value).__name__}",
                mend="keep only numbers, strings and tuples of them beside tensors and modules",
            )


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}


def _tensor_edits(module: nn.Module, fresh: nn.Module, path: str) -> Iterator[Edit]:
    tensors, fresh_tensors = own_tensors(module), own_tensors(fresh)
    for name in fresh_tensors:
        if name not in tensors:
            yield {"op": "drop_tensor", "path": path, "name": name}
    changed = {
        name: spec
        for name, tensor in tensors.items()
        if (spec := _spec(module, name, tensor))
        != (_spec(fresh, name, fresh_tensors[name]) if name in fresh_tensors else None)
    }
    if changed:
        yield {"op": "tensors", "path": path, "tensors": changed}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of one module, without its children's."""
    return {name: tensor for name, tensor in {**module._parameters, **module._buffers}.items() if tensor is not None}


def _spec(module: nn.Module, name: str, tensor: Tensor) -> dict[str, Any]:
    if name in module._parameters:
        kind = "parameter"
    else:
        kind = "passing buffer" if name in module._non_persistent_buffers_set else "buffer"
    return {"kind": kind, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _refuse_hidden_state(module: nn.Module, fresh: nn.Module, path: str) -> None:
    place = f"the module {path or 'at the root'!r}"
    if isinstance(module, LazyModuleMixin):
        raise ArtifactError(f"{place} is lazy and has no shape yet", mend="run the network once")
    if not parametrize.is_parametrized(fresh):
        _refuse_parametrization(module, path)
    if any(name.endswith("_mask") and f"{name[:-5]}_orig" in module._parameters for name in module._buffers):
        raise ArtifactError(
            f"{place} still has a mask of torch.nn.utils.prune", mend="call torch.nn.utils.prune.remove"
        )
    for hooks in _HOOKS:
        if len(getattr(module, hooks)) > len(getattr(fresh, hooks)):
            raise ArtifactError(f"{place} still has a hook ({hooks})", mend="remove the hook's handle")
    if "forward" in vars(module) and "forward" not in vars(fresh):
        raise ArtifactError(f"{place} has a replaced `forward`", mend="make it a method of a registered type")
    for name, tensor in own_tensors(module).items():
        if type(tensor) not in {Tensor, nn.Parameter, nn.Buffer}:
            raise ArtifactError(
                f"{place} holds {name!r} as {type(tensor).__name__}, a tensor subclass",
                mend="keep plain tensors in a registered module type",
            )
        if tensor.layout is not torch.strided:
            raise ArtifactError(f"{place} holds {name!r} as a sparse tensor", mend="make it dense with .to_dense()")
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        raise ArtifactError(f"{place} has extra state that is no tensor", mend="keep it in buffers")


def _refuse_parametrization(module: nn.Module, path: str) -> None:
    if parametrize.is_parametrized(module):
        raise ArtifactError(
            f"the module {path or 'at the root'!r} still has a parametrization",
            mend="call torch.nn.utils.parametrize.remove_parametrizations",
        )
