"""Places of a network that a block may take: a module, or a run of the children of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from compress_core.errors import ModelError, suggest

OVERLAP = "name each layer once"


@dataclass(frozen=True)
class Place:
    """A module, or a run of a sequence's children, by the path of its first and the name of its last one."""

    first: str
    last: str

    def __str__(self) -> str:
        return self.first if self.first == self.last else f"{self.first}:{self.last.rpartition('.')[2]}"


def places_of(model: nn.Module, patterns: tuple[str, ...]) -> list[Place]:
    """The modules that fit, without those inside others that fit; `stage.0:2` are the children 0 to 2 of a sequence.

    Raises:
        ModelError: a pattern fits none, a run is none of a sequence, or two places overlap.
    """
    paths = [path for path, _ in model.named_modules() if path]
    found: dict[str, Place] = {}
    for pattern in patterns:
        fitting = [path for path in paths if fnmatchcase(path, pattern)]
        if not fitting and ":" not in pattern:
            raise ModelError(f"the pattern {pattern!r} in `paths` matches no module", mend=suggest(pattern, paths))
        for place in [_run_of(model, pattern)] if ":" in pattern else [Place(path, path) for path in fitting]:
            if found.setdefault(place.first, place) != place:
                raise ModelError(f"{found[place.first]} and {place} in `paths` overlap", mend=OVERLAP)
    members = {path: members_of(model, place) for path, place in found.items()}
    outer = [
        path
        for path in found
        if not any(path.startswith(f"{member}.") for other in members for member in members[other])
    ]
    for path in outer:
        for other in outer:
            if path != other and path in members[other]:
                raise ModelError(f"{found[path]} and {found[other]} in `paths` overlap", mend=OVERLAP)
        _refuse_shared(model, found[path], members[path])
    return [found[path] for path in outer]


def _run_of(model: nn.Module, pattern: str) -> Place:
    first, _, last = pattern.partition(":")
    parent, _, name = first.rpartition(".")
    try:
        sequence = model.get_submodule(parent)
    except AttributeError:
        sequence = None
    names = list(sequence._modules) if isinstance(sequence, nn.Sequential) else []
    if name not in names or last not in names or names.index(last) < names.index(name):
        raise ModelError(
            f"{pattern!r} in `paths` is no run of the children of a Sequential",
            mend="write the path of the first, a colon and the name of the last, as in `features.3:6`",
        )
    return Place(first, f"{parent}.{last}" if parent else last)


def _refuse_shared(model: nn.Module, place: Place, members: list[str]) -> None:
    """Refuse a place that is called under another name too: the layers there would stay."""
    inside, outside = set(), {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(name.startswith(f"{member}.") for member in members):
            inside.add(id(parameter))
        else:
            outside[id(parameter)] = name
    if common := sorted(outside[key] for key in inside & outside.keys()):
        raise ModelError(f"it shares {common[0]!r}", where=str(place), mend="replace other layers")


def old_layers(model: nn.Module, place: Place) -> nn.Module:
    """What a block replaces, to be called like it."""
    if place.first == place.last:
        return model.get_submodule(place.first)
    return nn.Sequential(*(model.get_submodule(path) for path in members_of(model, place)))


def members_of(model: nn.Module, place: Place) -> list[str]:
    """The paths that a place takes."""
    parent, _, first = place.first.rpartition(".")
    names = list(model.get_submodule(parent)._modules)
    last = place.last.rpartition(".")[2]
    return [f"{parent}.{name}" if parent else name for name in names[names.index(first) : names.index(last) + 1]]


def put(model: nn.Module, place: Place, block: nn.Module) -> None:
    """Put a block in the place of what it replaces, in eval mode."""
    first, *others = members_of(model, place)
    parent, _, name = first.rpartition(".")
    setattr(model.get_submodule(parent), name, block.eval())
    for path in others:
        del model.get_submodule(parent)._modules[path.rpartition(".")[2]]
