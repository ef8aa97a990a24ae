"""The order of techniques rests on what they change, never on how they were written."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_core.errors import RecipeError
from compress_core.order import FINISHING, WORKING, changes_numbers, check_together, kind_of, ordered, trains
from compress_core.parts import Change, Technique
from tests.core.fakes import Codes, Cut, Integers, Learn, Mimic, Reopen, Shape

PARTS = (Codes(), Cut(), Integers(), Learn(), Mimic(), Reopen(), Shape())


class Late(Shape):
    """Changes the architecture when the training is over."""

    name = "late"
    after_training = True


class Everything(Technique):
    """Changes all there is."""

    name = "everything"
    changed: tuple[Change, ...] = tuple(Change)

    @property
    def changes(self):
        return frozenset(self.changed)

    def apply(self, model, run):
        return model


@given(st.permutations(PARTS), st.sampled_from([WORKING, FINISHING]))
def test_the_order_does_not_depend_on_the_writing(techniques, kinds):
    assert ordered(techniques, kinds) == ordered(PARTS, kinds)


@given(st.permutations(PARTS))
def test_shapes_come_before_weights_before_numbers_before_training(techniques):
    kinds = [WORKING.index(kind_of(technique)) for technique in ordered(techniques)]
    assert kinds == sorted(kinds)


@given(st.permutations(PARTS))
def test_numbers_are_finished_last_and_training_first(techniques):
    names = [technique.name for technique in ordered(techniques, FINISHING)]
    assert names == ["learn", "mimic", "shape", "cut", "reopen", "codes", "integers"]


def test_the_documented_orders_are_these():
    assert WORKING == (Change.ARCHITECTURE, Change.WEIGHTS, Change.NUMBERS, Change.TRAINING)
    assert FINISHING == (Change.TRAINING, Change.ARCHITECTURE, Change.WEIGHTS, Change.NUMBERS)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ((), Change.TRAINING),
        ((Change.TRAINING, Change.WEIGHTS), Change.WEIGHTS),
        ((Change.WEIGHTS, Change.ARCHITECTURE), Change.ARCHITECTURE),
        ((Change.ARCHITECTURE, Change.NUMBERS), Change.NUMBERS),
    ],
)
def test_the_deepest_change_decides_the_kind(changed, kind):
    assert kind_of(Everything(changed=changed)) is kind


def test_one_technique_twice_is_refused():
    with pytest.raises(RecipeError, match="'cut' is used twice"):
        check_together([Cut(), Cut(share=0.1)], teacher=False)


@given(st.permutations([Shape(), Cut(), Integers(), Learn(), Mimic()]))
def test_one_of_each_kind_may_share_a_step_in_any_writing(techniques):
    check_together(techniques, teacher=True)
    with pytest.raises(RecipeError, match="'mimic' needs a teacher"):
        check_together(techniques, teacher=False)
    with pytest.raises(RecipeError, match="'mimic' does nothing without training"):
        check_together([technique for technique in techniques if technique.name != "learn"], teacher=True)
    with pytest.raises(RecipeError, match="'codes' and 'integers' both decide"):
        check_together([*techniques, Codes()], teacher=True)


@given(st.permutations([Late(), Integers(), Learn()]))
def test_the_shape_may_not_change_after_the_numbers_of_one_step(techniques):
    with pytest.raises(RecipeError, match="'late' changes the architecture after 'integers'"):
        check_together(techniques, teacher=False)
    check_together([technique for technique in techniques if technique.name != "learn"], teacher=False)
    check_together([technique for technique in techniques if technique.name != "integers"], teacher=False)


@pytest.mark.parametrize("technique", [Cut(), Shape(), Integers(), Learn()])
def test_after_the_numbers_nothing_changes_a_network(technique):
    with pytest.raises(RecipeError, match=f"{technique.name!r} cannot change") as caught:
        check_together([technique], teacher=False, numbers_from="int8")
    assert "'int8'" in caught.value.mend
    check_together([Reopen()], teacher=False, numbers_from="int8")
    check_together([Everything(changed=())], teacher=False, numbers_from="int8")


@pytest.mark.parametrize(
    ("techniques", "before", "after"),
    [
        ([], False, False),
        ([], True, True),
        ([Cut()], True, True),
        ([Integers()], False, True),
        ([Reopen()], True, False),
        ([Reopen(), Integers()], True, True),
    ],
)
def test_numbers_stay_changed_until_they_are_reopened(techniques, before, after):
    assert changes_numbers(techniques, before=before) is after


def test_a_step_trains_if_one_technique_brings_epochs():
    assert trains([Cut(), Learn()])
    assert not trains([Cut(), Mimic()])


def test_names_decide_within_a_kind():
    names = [technique.name for technique in ordered(PARTS)]
    assert all(
        one < other or WORKING.index(kind_of(a)) < WORKING.index(kind_of(b))
        for (one, a), (other, b) in pairwise(zip(names, ordered(PARTS), strict=True))
    )
