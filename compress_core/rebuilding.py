"""Making a network's architecture again from the edits that `structure.differences` lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compress_core.errors import ArtifactError
from compress_core.factory import ORIGIN, build_model
from compress_core.plain_values import decode, dtype_named

Edit = dict[str, Any]
Types = Mapping[str, type]
"""Module types that may be built, by qualified name."""


def apply_edits(model: nn.Module, edits: list[Edit], types: Types) -> nn.Module:
    """Edit a fresh network in place and return it; a replaced root is another object.

    It calls the factories that the edits name.

    Raises:
        ArtifactError: an edit does not fit the network.
    """
    for edit in edits:
        try:
            model = _apply(model, edit, types)
        except ArtifactError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"the edit {edit.get('op')!r} of {edit.get('path')!r} does not fit the network: {error!r}",
                mend="the factory's code has changed since the model was saved: run its step again",
            ) from error
    return model


def factories_in(edits: list[Edit]) -> Iterator[str]:
    """The import strings of the factories that `apply_edits` would call."""
    for edit in edits:
        description = edit.get("module", {})
        if "factory" in description:
            yield str(description["factory"])
        yield from factories_in(description.get("edits", []))


def _apply(model: nn.Module, edit: Edit, types: Types) -> nn.Module:
    path = str(edit["path"])
    match edit["op"]:
        case "replace":
            return _place(model, path, _rebuild(edit["module"], path, types))
        case "adopt":
            heir = _rebuild({**edit["module"], "edits": []}, path, types)
            return _place(model, path, adopt(heir, model.get_submodule(path)))
        case "alias":
            return _place(model, path, model.get_submodule(edit["same_as"]))
        case "remove":
            parent, name = _parent(model, path)
            del parent._modules[name]
        case "order":
            module = model.get_submodule(path)
            named = {str(name): module._modules[str(name)] for name in edit["names"]}
            module._modules = {**named, **module._modules}
        case "setattr":
            name = str(edit["name"])
            if name.startswith("_"):
                raise ArtifactError(f"the edit of {path!r} touches the private attribute {name!r}")
            setattr(model.get_submodule(path), name, decode(edit["value"]))
        case "drop_tensor":
            module = model.get_submodule(path)
            owner = module._parameters if edit["name"] in module._parameters else module._buffers
            owner[str(edit["name"])] = None
        case "tensors":
            module = model.get_submodule(path)
            for name, spec in edit["tensors"].items():
                _put_tensor(module, str(name), spec)
        case other:
            raise ArtifactError(f"unknown edit {other!r}", mend="it was saved by a newer version of compress")
    return model


def _rebuild(description: Mapping[str, Any], path: str, types: Types) -> nn.Module:
    if "factory" in description:
        fresh = build_model(str(description["factory"]), decode(description["params"]), error=ArtifactError)
        return apply_edits(fresh, description["edits"], types)
    name = str(description["type"])
    if name not in types:
        raise ArtifactError(
            f"the module {path!r} has the type {name}, which no installed plugin registers",
            mend=f"install the plugin that has {name.partition('.')[0]}",
        )
    arguments = {key: decode(value) for key, value in description["arguments"].items()}
    return apply_edits(construct(types[name], arguments, path), description["edits"], types)


def adopt(module: nn.Module, other: nn.Module) -> nn.Module:
    """Give a new module everything that another one holds; the other keeps it too."""
    module._modules = dict(other._modules)
    module._parameters, module._buffers = dict(other._parameters), dict(other._buffers)
    module._non_persistent_buffers_set = set(other._non_persistent_buffers_set)
    if ORIGIN in other.__dict__:
        module.__dict__[ORIGIN] = other.__dict__[ORIGIN]
    return module


def construct(kind: type, arguments: Mapping[str, Any], path: str) -> nn.Module:
    """Call a module type with its constructor arguments, without disturbing anybody's random numbers."""
    with torch.random.fork_rng(devices=[]):
        try:
            built = kind(**arguments)
        except Exception as error:
            raise ArtifactError(f"the module {path!r} cannot be built from its arguments: {error!r}") from error
    assert isinstance(built, nn.Module)
    return built


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def _place(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    if not path:
        return module
    parent, name = _parent(model, path)
    vars(parent).pop(name, None)  # a function that a module takes the place of would hide it
    parent._modules[name] = module
    return model


def _put_tensor(module: nn.Module, name: str, spec: Mapping[str, Any]) -> None:
    """Make room for a tensor; its values are loaded afterwards."""
    tensor = torch.empty(tuple(spec["shape"]), dtype=dtype_named(spec["dtype"]), device="meta")
    if spec["kind"] == "parameter":
        module._buffers.pop(name, None)
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    else:
        module._parameters.pop(name, None)
        module.register_buffer(name, tensor, persistent=spec["kind"] == "buffer")
