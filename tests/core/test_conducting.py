"""Techniques that lead the training of their step: how often the others train, what is logged, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress_core.applying import apply_techniques
from compress_core.errors import RecipeError
from compress_core.order import check_together
from compress_core.parts import Change, TrainingTechnique
from tests.core.fakes import Integers, Learn
from tests.support import make, make_run


class Follow(TrainingTechnique):
    """Stands in for the conductor, and writes down its number and the progress."""

    name = "lead"
    number: int
    seen: Any  # pydantic would copy a list

    def after_step(self, model, state, progress, run):
        self.seen.append((self.number, progress))


class Lead(TrainingTechnique):
    """Trains so often."""

    name = "lead"
    times: int = 3
    seen: Any = None

    @property
    def conducts(self):
        return self.times > 1

    def conduct(self, model, train, run):
        for number in range(self.times):
            model = train(model, Follow(number=number, seen=self.seen))
        return model

    def after_step(self, model, state, progress, run):
        self.seen.append(("itself", progress))


class Alone(Lead):
    """Trains without anything in its place."""

    name = "alone"

    def conduct(self, model, train, run):
        return train(model, None)


class Leader(Lead):
    name = "leader"


def test_each_round_is_a_whole_training_with_the_others_and_the_stand_in():
    seen = []
    run = make_run()
    model = make("mlp")
    trained = apply_techniques(model, [Lead(seen=seen), Learn(epochs=2)], run)
    updates = 2 * (997 // 64)
    assert [number for number, _ in seen] == [0] * updates + [1] * updates + [2] * updates
    assert [progress for number, progress in seen if number == 1][-1] == 1.0
    once = apply_techniques(model, [Learn(epochs=2)], run)
    twice = apply_techniques(apply_techniques(once, [Learn(epochs=2)], run), [Learn(epochs=2)], run)
    assert all(torch.equal(one, other) for one, other in zip(trained.parameters(), twice.parameters(), strict=True))


def test_without_a_stand_in_the_others_train_as_if_alone():
    model, run = make("mlp"), make_run()
    led = apply_techniques(model, [Alone(), Learn(epochs=1)], run)
    plain = apply_techniques(model, [Learn(epochs=1)], run)
    assert all(torch.equal(one, other) for one, other in zip(led.parameters(), plain.parameters(), strict=True))


def test_epochs_go_on_counting_from_training_to_training():
    logged = []
    run = make_run(logger=lambda name, value, step: logged.append((name, step)))
    apply_techniques(make("mlp"), [Lead(seen=[]), Learn(epochs=2)], run)
    assert [step for name, step in logged if name == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert [step for name, step in logged if name == "validation/accuracy"] == [1, 2, 3, 4, 5, 6]


def test_one_that_does_not_conduct_works_in_the_loop_itself():
    seen = []
    apply_techniques(make("mlp"), [Lead(times=1, seen=seen), Learn(epochs=1)], make_run())
    assert {number for number, _ in seen} == {"itself"}


def test_without_epochs_each_round_still_acts_once():
    seen = []
    apply_techniques(make("mlp"), [Lead(seen=seen)], make_run())
    assert seen == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_two_conductors_are_refused_by_name():
    with pytest.raises(RecipeError, match="'lead' and 'leader' both lead the training"):
        check_together([Lead(), Leader()], teacher=False)
    check_together([Lead(), Leader(times=1)], teacher=False)


def test_a_change_of_numbers_is_refused_beside_a_conductor():
    with pytest.raises(RecipeError, match="'lead' trains several times") as caught:
        check_together([Lead(), Integers()], teacher=False)
    assert "move 'integers' into a step of its own" in caught.value.mend
    check_together([Lead(times=1), Integers()], teacher=False)


def test_a_conductor_keeps_its_place_when_its_kind_changes_the_architecture():
    class Shapes(Lead):
        name = "shapes"

        @property
        def changes(self):
            return frozenset({Change.ARCHITECTURE})

    check_together([Shapes(), Learn()], teacher=False)
    assert not apply_techniques(make("mlp"), [Shapes(seen=[]), Learn(epochs=1)], make_run()).training
