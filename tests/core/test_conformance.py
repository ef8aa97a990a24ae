"""Every installed technique keeps every promise of the kit, each pair of techniques once."""

from __future__ import annotations

import pytest

from compress_core.catalog import catalog
from compress_core.parts import Technique
from compress_core.testing import Check, Epochs, checks_for

CLASSES = [kind for _, kind in sorted(catalog().techniques.items())]


def _checks() -> list[Check]:
    found: list[Check] = []
    for place, kind in enumerate(CLASSES):
        others: list[Technique] = [Epochs(), *(other(**other.example) for other in CLASSES[place + 1 :])]
        found += checks_for(kind, others=others)
    return found


@pytest.mark.parametrize("check", _checks(), ids=lambda check: f"{check.technique}-{check}")
def test_an_installed_technique_keeps_its_promises(check):
    check()
