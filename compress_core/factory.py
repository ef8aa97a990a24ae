"""Building a network from its factory, without disturbing anybody's random numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from compress_core.errors import CompressError, ModelError, place_of
from compress_core.imports import resolve, stopped
from compress_core.seeding import seeded

ORIGIN = "_compress_factory"
"""The mark under which a network keeps its factory and arguments, through copies too."""

MEND = "name a class or function that returns a torch.nn.Module"


def build_model(
    factory: str,
    params: Mapping[str, Any],
    *,
    seed: int = 0,
    where: str = "model",
    error: type[CompressError] = ModelError,
) -> nn.Module:
    """Call a factory by its import string; the network is marked with it.

    Raises:
        CompressError: of the type `error`: it does not resolve, raises, or returns no `nn.Module`.
    """
    make = resolve(factory, error, f"{where}.factory")
    if not callable(make):
        raise error(f"{factory!r} is no function or class", where=f"{where}.factory", mend=MEND)
    with seeded(seed):
        try:
            model = make(**params)
        except CompressError:
            raise
        except (Exception, SystemExit) as failure:
            if stopped(failure):
                raise
            raise error(
                f"{factory!r} fails with {type(failure).__name__}: {failure}{place_of(failure)}",
                where=f"{where}.params",
                mend=f"it takes {_signature(make)}",
            ) from failure
    if not isinstance(model, nn.Module):
        raise error(
            f"{factory!r} returns {type(model).__name__}",
            where=f"{where}.factory",
            mend=MEND,
        )
    model.__dict__[ORIGIN] = (factory, dict(params))
    return model


def _signature(make: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(make))
    except (TypeError, ValueError):
        return "other arguments"
