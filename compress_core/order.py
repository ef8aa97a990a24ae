"""Which techniques may share a step or follow one another, and in which order they work.

The order is by kind, never as written:

    plan, prepare, begin, after_step    ARCHITECTURE  WEIGHTS  NUMBERS  TRAINING
    finish                              TRAINING  ARCHITECTURE  WEIGHTS  NUMBERS

so that a network is quantized only after its shape is final, and the dependency graph of pruning still
knows its layers. Rules rest on what techniques declare, so no technique needs to know another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compress_core.errors import RecipeError
from compress_core.parts import Change, Technique, TrainingTechnique

WORKING = (Change.ARCHITECTURE, Change.WEIGHTS, Change.NUMBERS, Change.TRAINING)
FINISHING = (Change.TRAINING, Change.ARCHITECTURE, Change.WEIGHTS, Change.NUMBERS)
_DEEPEST_FIRST = (Change.NUMBERS, Change.ARCHITECTURE, Change.WEIGHTS, Change.TRAINING)


def kind_of(technique: Technique) -> Change:
    """The deepest change that a technique makes; TRAINING if it makes none."""
    changes = technique.changes
    return next((change for change in _DEEPEST_FIRST if change in changes), Change.TRAINING)


def ordered(techniques: Iterable[Technique], kinds: Sequence[Change] = WORKING) -> list[Technique]:
    """The techniques by kind, and by name within a kind."""
    return sorted(techniques, key=lambda technique: (kinds.index(kind_of(technique)), technique.name))


def trains(techniques: Iterable[Technique]) -> bool:
    """Whether any of the techniques brings epochs."""
    return any(isinstance(technique, TrainingTechnique) and technique.brings_epochs for technique in techniques)


def changes_numbers(techniques: Iterable[Technique], *, before: bool) -> bool:
    """Whether a network's numbers have another format after these techniques, given whether they had one before."""
    found = before
    for technique in techniques:
        found = (found and not technique.reopens_numbers) or Change.NUMBERS in technique.changes
    return found


def check_together(techniques: Sequence[Technique], *, teacher: bool, numbers_from: str | None = None) -> None:
    """Refuse techniques that cannot share a step.

    Args:
        techniques: what the step uses.
        teacher: whether the step has a teacher.
        numbers_from: the step, if any, that has changed the format of the input's numbers.

    Raises:
        RecipeError: with the name of the technique at fault.
    """
    names: set[str] = set()
    for technique in techniques:
        if technique.name in names:
            raise RecipeError(f"{technique.name!r} is used twice in one step", mend="use it in two steps")
        names.add(technique.name)
        if technique.needs_teacher and not teacher:
            raise RecipeError(f"{technique.name!r} needs a teacher", mend="name a step after `teacher:`")
        if isinstance(technique, TrainingTechnique) and technique.needs_epochs and not trains(techniques):
            raise RecipeError(
                f"{technique.name!r} does nothing without training", mend="add `tune: {epochs: 10}` to the same step"
            )
        if numbers_from is not None and technique.changes and not technique.reopens_numbers:
            raise RecipeError(
                f"{technique.name!r} cannot change a network whose numbers {numbers_from!r} has already changed",
                mend=f"move it before {numbers_from!r}, or into the same step",
            )
    owners = [technique.name for technique in ordered(techniques) if Change.NUMBERS in technique.changes]
    if len(owners) > 1:
        raise RecipeError(
            f"{' and '.join(map(repr, owners))} both decide the format of the numbers", mend="keep one of them"
        )
    leaders = [entry.name for entry in techniques if isinstance(entry, TrainingTechnique) and entry.conducts]
    if len(leaders) > 1:
        raise RecipeError(f"{' and '.join(map(repr, leaders))} both lead the training", mend="use them in two steps")
    if leaders and owners:
        raise RecipeError(
            f"{leaders[0]!r} trains several times, and {owners[0]!r} would end that the first time",
            mend=f"move {owners[0]!r} into a step of its own, after this one",
        )
    late = [
        technique.name
        for technique in techniques
        if technique.after_training and kind_of(technique) is Change.ARCHITECTURE
    ]
    if owners and late and trains(techniques):
        raise RecipeError(
            f"{late[0]!r} changes the architecture after {owners[0]!r} has changed the numbers",
            mend=f"move {owners[0]!r} into a step of its own, after this one",
        )
