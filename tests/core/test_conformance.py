"""Every installed technique keeps every promise of the kit, each pair of techniques once, each choice once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from compress_core.catalog import catalog
from compress_core.parts import Change, Technique
from compress_core.testing import NETS, Check, Epochs, Refusal, checks_for

EXAMPLES: list[Technique] = [kind(**kind.example) for _, kind in sorted(catalog().techniques.items())]


def _checks() -> list[Check]:
    """A technique that only trains leaves the modules as they are, which `runs` holds it to: others export them."""
    found: list[Check] = []
    for place, technique in enumerate(EXAMPLES):
        export = technique.changes != {Change.TRAINING}
        found += checks_for(technique, others=[Epochs(), *EXAMPLES[place + 1 :]], export=export)
    return found


def _variants() -> Iterator[tuple[str, Technique, Technique]]:
    """Each example with another choice in one of its fields: what was chosen, the technique, the example."""
    for example in EXAMPLES:
        for field, info in type(example).model_fields.items():
            choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            for choice in choices:
                try:
                    technique = type(example)(**{**type(example).example, field: choice})
                except ValidationError:
                    continue
                if technique != example:
                    yield f"{field}={choice}", technique, example


def _checks_of_variants() -> Iterator[tuple[str, Check]]:
    """A choice that changes something else in a network is also composed with every technique."""
    for chosen, technique, example in _variants():
        compose = technique.changes != example.changes
        nets = ("conv",) if technique.changes == {Change.TRAINING} else tuple(NETS)
        for check in checks_for(technique, nets=nets, compose=compose, export=compose):
            if check.name not in {"parameters", "imports"}:
                yield chosen, check


def _names_modules_of_another_network(check: Check, refusal: Refusal | None) -> bool:
    """Whether the example has paths in it, and the network is not the one that has them."""
    return "conv" not in str(check) and refusal is not None and "matches no module" in refusal.what


@pytest.mark.parametrize("check", _checks(), ids=lambda check: f"{check.technique}-{check}")
def test_an_installed_technique_keeps_its_promises(check):
    refusal = check()
    if not check.name.startswith(("trains-on", "composes")) and not _names_modules_of_another_network(check, refusal):
        assert refusal is None, "at its example a technique works on every network of the kit"


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=f"{check.technique}-{chosen}-{check}") for chosen, check in _checks_of_variants()]
)
def test_an_installed_technique_keeps_its_promises_whatever_is_chosen(check):
    check()


def test_choices_are_found():
    assert {"granularity=channel"} <= {chosen for chosen, _, _ in _variants()}
