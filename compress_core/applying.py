"""One step on a live network: techniques in their order, with the checks that make the result trustworthy."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from compress_core.errors import BrokenModelError, CompressError, place_of
from compress_core.factory import ORIGIN
from compress_core.order import ordered
from compress_core.parts import Change, Technique, TrainingTechnique
from compress_core.run import Run
from compress_core.seeding import seeded


def apply_techniques(model: nn.Module, techniques: Sequence[Technique], run: Run) -> nn.Module:
    """Return what the techniques of one step make of a network; `model` itself stays as it is.

    The result remembers which factory it grew from, also where it is a new module altogether.
    Whatever they draw at random comes from the run's seed; the caller's random numbers are left alone.

    Raises:
        CompressError: a technique refuses the network, training fails, or the result does not run.
    """
    with seeded(run.seed):
        result = deepcopy(model).to(run.device)
        plain = [technique for technique in ordered(techniques) if not isinstance(technique, TrainingTechnique)]
        for technique in (entry for entry in plain if not entry.after_training):
            result = _apply(technique, result, run)
        if training := [technique for technique in techniques if isinstance(technique, TrainingTechnique)]:
            result = run.train(result, training)
        for technique in (entry for entry in plain if entry.after_training):
            result = _apply(technique, result, run)
        check_runs(result, run, techniques)
    if ORIGIN in model.__dict__:
        result.__dict__.setdefault(ORIGIN, model.__dict__[ORIGIN])
    return result.eval()


def check_runs(model: nn.Module, run: Run, techniques: Sequence[Technique] = ()) -> None:
    """Run the example through the network in eval mode and, while it can be trained further, in train mode.

    Raises:
        BrokenModelError: it does not run, or its outputs are no numbers.
    """
    blame = ", ".join(technique.name for technique in techniques) or "the factory"
    modes = [False] if any(Change.NUMBERS in technique.changes for technique in techniques) else [False, True]
    arguments, keywords = run.example
    copy = deepcopy(model).to(run.device)
    for training in modes:
        copy.train(training)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                output = copy(*arguments, **keywords)
        except Exception as error:
            mode = "train" if training else "eval"
            reason = f"{type(error).__name__}: {error}{place_of(error)}"
            raise BrokenModelError(
                f"the network that {blame} made does not run in {mode} mode: {reason}",
                mend="check that the data's columns fit the network's forward, or leave the named layers out",
            ) from error
        if not training and not torch.isfinite(run.task.logits(output)).all():
            raise BrokenModelError(f"the network that {blame} made gives outputs that are not finite")


def _apply(technique: Technique, model: nn.Module, run: Run) -> nn.Module:
    try:
        return technique.apply(model, run)
    except CompressError as error:
        raise error.inside(technique.name) if not error.where else error from error.__cause__
