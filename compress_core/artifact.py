"""A model on disk: `manifest.json` and `model.safetensors`, no pickle, same model = same bytes.

The manifest names the factory and its arguments, the edits that lead from what the factory builds to this
network, the tensors that share memory, those that are masked, frozen or unfrozen, and where the model came from.
Loading runs no code but the factory, and those of the networks within it that have their own (the members of a
committee); each must be trusted by the caller or the recipe, or be a class or function that an installed plugin
defines itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from compress_core.attention import Attention
from compress_core.catalog import catalog
from compress_core.errors import ArtifactError, CompressError
from compress_core.factory import ORIGIN, build_model
from compress_core.files import MANIFEST, read_manifest, refuse_foreign, replacing, write_manifest, write_tensors
from compress_core.imports import resolve
from compress_core.masks import hold_zeros, masked_tensors
from compress_core.plain_values import decode, encode, is_plain
from compress_core.rebuilding import Types, apply_edits, factories_in
from compress_core.sharing import overlap
from compress_core.structure import differences, qualified_name, torch_types

TENSORS = "model.safetensors"
_TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def save(
    model: nn.Module,
    folder: Path | str,
    *,
    factory: str,
    params: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Save a network that grew from what `factory(**params)` builds; `folder` is replaced whole.

    Raises:
        ArtifactError: something in the network cannot be represented; nothing is written.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    try:
        fresh = build_model(factory, params or {}, error=ArtifactError)
        edits = differences(model, fresh, module_types())
        _refuse_shared_memory(model)
        tensors, ties = _tensors(model)
        passing = {name: tensor for name, tensor in _passing_buffers(model) if not _equals(fresh, name, tensor)}
        content = {
            "kind": "model",
            "factory": factory,
            "params": _encoded(params or {}),
            "edits": edits,
            "ties": ties,
            "masked": masked_tensors(model),
            "trains": _trains(model, apply_edits(fresh, edits, module_types())),
            "provenance": dict(provenance or {}),
        }
        with replacing(folder) as temporary:
            write_tensors(temporary / TENSORS, {**tensors, **passing})
            write_manifest(temporary, content)
            _compare(model, load(temporary, factory=factory, trust=set(factories_in(edits))))
    except CompressError as error:
        raise error.inside(str(folder)) if not error.where else error from error.__cause__


def load(folder: Path | str, *, factory: str | None = None, trust: Collection[str] = ()) -> nn.Module:
    """Load a network in eval mode.

    Args:
        folder: what `save` wrote.
        factory: the import string that the caller expects and trusts.
        trust: further import strings that may be run.

    Raises:
        ArtifactError: the folder is missing or altered, its factory is not trusted or does not fit any more.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, kind="model")
    try:
        named = str(manifest["factory"])
        _refuse_strangers([named, *factories_in(manifest["edits"])], {factory, *trust})
        params = {str(name): decode(value) for name, value in manifest["params"].items()}
        model = build_model(named, params, error=ArtifactError)
        model = apply_edits(model, manifest["edits"], module_types())
        _fill(model, folder / TENSORS, manifest["ties"])
        for name in manifest["masked"]:
            path, _, tensor = name.rpartition(".")
            hold_zeros(model.get_submodule(path), tensor)
        for name, trains in manifest["trains"].items():
            model.get_parameter(name).requires_grad_(bool(trains))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{MANIFEST} does not fit the network: {error!r}", where=str(folder), mend="run the step that made it again"
        ) from error
    except ArtifactError as error:
        raise error.inside(str(folder)) from error.__cause__
    return model.eval()


@contextmanager
def trusting(factories: Iterable[str]) -> Iterator[None]:
    """Trust these import strings in every `load` within the block, as an exporter's that opens a packed artifact."""
    token = _TRUSTED.set(_TRUSTED.get() | frozenset(factories))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def origins(model: nn.Module) -> set[str]:
    """The factories that have built a network and those within it: who has the network has run them."""
    return {module.__dict__[ORIGIN][0] for module in model.modules() if ORIGIN in module.__dict__}


def _refuse_strangers(factories: Iterable[str], trusted: Collection[str | None]) -> None:
    """Refuse factories that are neither trusted by name nor an installed plugin's."""
    trusted = {*trusted, *_TRUSTED.get()}
    packages = {plugin.package for plugin in catalog().plugins if not plugin.error}
    for factory in factories:
        if factory not in trusted and not _is_of(factory, packages):
            raise ArtifactError(
                f"its factory {factory!r} is not trusted: loading would run it",
                mend=f"if you trust it, pass trust=[{factory!r}]",
            )


def _is_of(factory: str, packages: Collection[str]) -> bool:
    """Whether a factory is a network or a function that one of the packages defines, not one that it only imports."""
    module, _, attribute = factory.partition(":")
    package, *within = module.split(".")
    if package not in packages or "__main__" in within or not attribute.isidentifier() or attribute.startswith("_"):
        return False
    found = resolve(factory, ArtifactError, "factory")
    makes = issubclass(found, nn.Module) if isinstance(found, type) else isinstance(found, FunctionType)
    return makes and str(found.__module__).partition(".")[0] == package


def same_network(one: Path, other: Path) -> bool:
    """Whether two artifacts hold the same network, bit for bit, wherever each came from."""
    first, second = (read_manifest(folder, kind="model") for folder in (one, other))
    return all(first[key] == second[key] for key in first if key != "provenance")


def module_types() -> Types:
    """The module types that a saved model may contain."""
    return {**torch_types(), qualified_name(Attention): Attention, **catalog().modules}


def _encoded(params: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in params.items():
        if not is_plain(value):
            raise ArtifactError(
                f"the factory's argument {name!r} is or holds a {type(value).__name__}, which cannot be written",
                mend="give it numbers, strings, number formats, and lists, tuples and mappings of them",
            )
    return {name: encode(value) for name, value in params.items()}


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, a shared one under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    passing = {name for name, _ in _passing_buffers(model)}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in passing:
            yield name, buffer


def _passing_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        for name in sorted(module._non_persistent_buffers_set):
            if (buffer := module._buffers.get(name)) is not None:
                yield f"{path}.{name}" if path else name, buffer


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to be written, and for each further name of a shared one the name it is written under."""
    written: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in sorted(_named_tensors(model), key=lambda entry: entry[0]):
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            written[name] = tensor
    return written, ties


def _refuse_shared_memory(model: nn.Module) -> None:
    """Refuse two tensors with a common element: a file holds each by itself, and one could then change alone."""
    objects = {id(tensor): (name, tensor) for name, tensor in (*_named_tensors(model), *_passing_buffers(model))}
    if found := overlap(dict(objects.values())):
        raise ArtifactError(
            f"the tensors {found[0]!r} and {found[1]!r} share memory without being one object",
            mend="give both places the same nn.Parameter, or make one of them a copy with .clone()",
        )


def _equals(model: nn.Module, name: str, tensor: Tensor) -> bool:
    try:
        other = model.get_buffer(name)
    except AttributeError:
        return False
    return _same_bits(tensor, other)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree bit for bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = [tensor.detach().cpu().contiguous().view(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)


def _trains(model: nn.Module, fresh: nn.Module) -> dict[str, bool]:
    """Whether each parameter trains of which the fresh network has another opinion."""
    before = {name: parameter.requires_grad for name, parameter in fresh.named_parameters(remove_duplicate=False)}
    return {
        name: parameter.requires_grad
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad != before.get(name)
    }


def _fill(model: nn.Module, path: Path, ties: Mapping[str, str]) -> None:
    """Give every tensor its saved value; shared ones become one object again."""
    filled: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        wanted = {name: tensor for name, tensor in _named_tensors(model)}
        wanted |= {name: tensor for name, tensor in _passing_buffers(model) if name in stored}
        if unknown := sorted((stored | set(ties)) - set(wanted)):
            raise ArtifactError(f"the network has no tensor {unknown[0]!r}, which {path.name} holds")
        for name, place in sorted(wanted.items(), key=lambda entry: entry[0] in ties):
            if name in ties:
                _assign(model, name, filled[ties[name]])
                continue
            if name not in stored:
                raise ArtifactError(f"{path.name} has no tensor {name!r}", mend="run the step that made it again")
            if list(place.shape) != file.get_slice(name).get_shape():
                raise ArtifactError(
                    f"{name!r} has the shape {file.get_slice(name).get_shape()}, the network wants {list(place.shape)}",
                    mend="the factory's code has changed since the model was saved: run its step again",
                )
            value = file.get_tensor(name)
            if isinstance(place, nn.Parameter):
                value = nn.Parameter(value, requires_grad=place.requires_grad)
            filled[name] = value
            _assign(model, name, value)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        module._parameters[own] = tensor
    else:
        module._buffers[own] = tensor


def _compare(model: nn.Module, loaded: nn.Module) -> None:
    """Refuse a save whose result is not the same network."""
    for name, tensor in {**dict(_named_tensors(model)), **dict(_passing_buffers(model))}.items():
        parent = loaded.get_submodule(name.rpartition(".")[0])
        found = getattr(parent, name.rpartition(".")[2])
        if not _same_bits(tensor, found):
            raise ArtifactError(f"the tensor {name!r} does not survive the round trip")
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad != found.requires_grad:
            raise ArtifactError(f"whether {name!r} trains does not survive the round trip")
    if edits := differences(model, loaded, module_types()):
        raise ArtifactError(f"the module {edits[0]['path']!r} does not survive the round trip: {edits[0]['op']}")
