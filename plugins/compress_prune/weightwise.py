"""Pruning weights one by one or in sets that keep their place: which weights have such sets, and how many go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from compress_core.errors import ModelError
from compress_core.weights import Place, weights
from compress_prune.allocating import erdos_renyi
from compress_prune.dynamic import Exchange, Rigl, Surgery
from compress_prune.masks import WeightMasks
from compress_prune.naming import by_reason, check_named, spared
from compress_prune.notation import parsed
from compress_prune.observing import Scorer
from compress_prune.patterns import Blocks, Kernels, OfEach, Singles
from compress_prune.sensitivity import dealt_out, measured, restoring

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run
    from compress_prune import Prune


def weight_masks(technique: Prune, model: nn.Module, run: Run) -> WeightMasks:
    """Find the weights that can go.

    Raises:
        ModelError: none can, or the criterion has no score for them.
    """
    sets = sets_of(technique)
    places = weights(model, spared(technique, model).values())
    scorer, whole = Scorer(technique.ranking, model, run), technique.allocation == "global"
    reasons = {place.name: sets.misfit(tuple(place.parameter.shape)) or _unscored(place, scorer) for place in places}
    names = _names(model)
    left = [((name,), reason) for name, reason in reasons.items() if reason] + list(_tied(technique, model, names))
    going = [name for place in places if not reasons[place.name] for name in names[place.parameter]]
    check_named(technique, model, (_path(name) for name in going), left)
    kept = [f"{names} left alone: {reason}" for names, reason in by_reason(left)]
    fitting = {place.name: tuple(place.parameter.shape) for place in places if not reasons[place.name]}
    if not fitting:
        raise ModelError(
            "; ".join(["the network has no weights to prune", *kept]),
            mend="prune single weights: `granularity: weight`"
            if type(sets) is not Singles
            else "shorten `skip`"
            if technique.skip
            else "",
        )
    for text in kept:
        run.say(f"prune: {text}")
    if technique.allocation == "sensitivity":
        shares = shares_by_sensitivity(model, fitting, sets, scorer, technique.share, run=run)
    else:
        shares = _shares(technique, fitting, sets)
    match technique.schedule:
        case "surgery":
            return Surgery(model, shares, sets, scorer, whole=whole)
        case "rigl":
            exchange = Exchange(technique.every, technique.regrow, technique.start, technique.end)
            return Rigl(model, shares, sets, scorer, whole=whole, exchange=exchange)
        case _:
            return WeightMasks(model, shares, sets, scorer, whole=whole, density=technique.density)


def _names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(parameter, []).append(name)
    return found


def _tied(
    technique: Prune, model: nn.Module, names: Mapping[nn.Parameter, list[str]]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The names of weights that could go, if they were not those of modules that stay too."""
    stays = spared(technique, model)
    for place in weights(model):
        kept = [name for name in names[place.parameter] if _path(name) in stays]
        if kept and len(kept) < len(names[place.parameter]):
            others = tuple(name for name in names[place.parameter] if name not in kept)
            yield others, f"it is also {kept[0]}, which stays"


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def _unscored(place: Place, scorer: Scorer) -> str | None:
    if scorer.weight_scores(place.name, place.parameter) is None:
        return f"the criterion `{scorer.criterion.name}` has no score for it"
    return None


def sets_of(technique: Prune) -> Singles:
    """What goes together."""
    match technique.granularity:
        case "block":
            rows, columns = technique.block
            return Blocks(rows=rows, columns=columns)
        case "kernel":
            return Kernels()
        case _ if technique.pattern:
            keep, of = parsed(technique.pattern)
            return OfEach(keep=keep, of=of)
        case _:
            return Singles()


def _shares(technique: Prune, shapes: Mapping[str, tuple[int, ...]], sets: Singles) -> dict[str, float]:
    """The share of its sets that goes in the end, for each weight."""
    if technique.pattern:
        return dict.fromkeys(shapes, 1.0)
    if technique.allocation == "erk":
        counts = [sets.total(shape) for shape in shapes.values()]
        return dict(zip(shapes, erdos_renyi(list(shapes.values()), counts, technique.share), strict=True))
    return dict.fromkeys(shapes, technique.share)


def shares_by_sensitivity(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], sets: Singles, scorer: Scorer, share: float, *, run: Run
) -> dict[str, float]:
    """The share of each weight's sets that goes, by what the network loses without some of them."""
    scorer.read(model, run)

    @contextmanager
    def without(name: str, part: float) -> Iterator[None]:
        with restoring([model.get_parameter(name)]):
            alone = WeightMasks(model, {name: part}, sets, scorer, whole=False).to(model.get_parameter(name).device)
            alone.remove(model, 1.0)
            alone.hold(model)
            yield

    layers: dict[str, Callable[[float], AbstractContextManager[None]]] = {
        name: partial(without, name) for name in shapes
    }
    curves = measured(model, layers, share, run)
    sizes = [sets.total(shape) for shape in shapes.values()]
    zero = [int(sets.whole(model.get_parameter(name) == 0).sum()) for name in shapes]
    least = [count / size for count, size in zip(zero, sizes, strict=True)]
    return dict(zip(shapes, dealt_out(curves, sizes, share, least), strict=True))
