"""The checks of a technique: which promises are tried on which networks and beside which techniques."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from compress_core.catalog import catalog
from compress_core.errors import PluginError, suggest
from compress_core.parts import Exporter, Technique
from compress_core.testing import promises
from compress_core.testing.digits import Epochs
from compress_core.testing.nets import NETS
from compress_core.testing.report import ConformanceError, Refusal, Report
from compress_core.testing.subject import Subject


@dataclass(frozen=True)
class Check:
    """One promise about one technique; calling it returns a refusal or None, or raises a `ConformanceError`."""

    name: str
    technique: str
    action: Callable[[], Refusal | None]

    def __call__(self) -> Refusal | None:
        """Find out whether the promise is kept."""
        try:
            return self.action()
        except ConformanceError as error:
            if error.where:
                raise
            raise ConformanceError(
                error.what, where=f"{self.technique}, {self.name}", mend=error.mend
            ) from error.__cause__

    def __str__(self) -> str:
        return self.name


def check_technique(
    technique: Technique | type[Technique],
    *,
    nets: Iterable[str] = tuple(NETS),
    others: Iterable[Technique] | None = None,
    compose: bool = True,
    export: bool = True,
) -> Report:
    """Check everything that `checks_for` lists, and return what the technique refuses and why.

    Raises:
        ConformanceError: with every promise that is not kept.
        PluginError: there is no such network.
    """
    checks = checks_for(technique, nets=nets, others=others, compose=compose, export=export)
    passed: list[str] = []
    refused: dict[str, Refusal] = {}
    broken: list[ConformanceError] = []
    for check in checks:
        try:
            refusal = check()
        except ConformanceError as error:
            broken.append(error)
            continue
        if refusal is None:
            passed.append(check.name)
        else:
            refused[check.name] = refusal
    if len(broken) == 1:
        raise broken[0]
    if broken:
        raise ConformanceError(
            f"{len(broken)} of {len(checks)} promises are not kept\n" + "\n".join(map(str, broken)),
            mend="begin with the first one",
        )
    return Report(technique.name, tuple(passed), refused)


def checks_for(
    technique: Technique | type[Technique],
    *,
    nets: Iterable[str] = tuple(NETS),
    others: Iterable[Technique] | None = None,
    compose: bool = True,
    export: bool = True,
) -> list[Check]:
    """Every check of a technique, ready for `pytest.mark.parametrize("check", …, ids=str)`.

    Args:
        technique: with the parameters that matter to you, or the class for its `example`.
        nets: the networks to run it on, of `NETS`.
        others: the techniques to compose it with, before, after and together; every installed one unless given.
        compose: whether to compose it at all.
        export: whether to send its result through every installed exporter that writes files of its own.

    Raises:
        PluginError: there is no such network.
    """
    kind = technique if isinstance(technique, type) else type(technique)
    names = _names(nets)
    found = [Check("parameters", kind.name, partial(promises.parameters, kind))]
    if kind in catalog().owners:
        found.append(Check("imports", kind.name, partial(promises.imports, catalog().owner(kind).package)))
    try:
        chosen = kind(**kind.example) if isinstance(technique, type) else technique
    except Exception:
        return found
    subject = Subject(chosen)
    found += _checks_on_nets(subject, names)
    if export:
        found += _checks_of_exports(subject, names)
    if compose:
        found += _checks_of_company(subject, names, _installed(chosen) if others is None else list(others))
    return found


def _names(nets: Iterable[str]) -> tuple[str, ...]:
    if isinstance(nets, str):
        raise PluginError(f"{nets!r} is a single name", where="nets", mend=f"nets=[{nets!r}]")
    names = tuple(nets)
    for name in names:
        if name not in NETS:
            raise PluginError(f"the kit has no network {name!r}", where="nets", mend=suggest(name, NETS))
    return names


def _checks_on_nets(subject: Subject, nets: tuple[str, ...]) -> Iterator[Check]:
    kept: dict[str, Callable[[Subject, str], Refusal | None]] = {
        "runs": promises.runs,
        "repeats": partial(promises.repeats, nets=nets),
        "survives": promises.survives,
        "trains-on": promises.trains_on,
    }
    for net in nets:
        for name, promise in kept.items():
            yield Check(f"{name}[{net}]", subject.technique.name, partial(promise, subject, net))


def _checks_of_exports(subject: Subject, nets: tuple[str, ...]) -> Iterator[Check]:
    for name, kind in sorted(catalog().exporters.items()):
        if kind.chosen is not Exporter.chosen:
            continue
        yield Check(f"exports[{name}]", subject.technique.name, partial(promises.exports, subject, nets, kind))


def _checks_of_company(subject: Subject, nets: tuple[str, ...], others: list[Technique]) -> Iterator[Check]:
    name = subject.technique.name
    yield Check("composes[after-itself]", name, partial(promises.composes_after, subject, subject, nets))
    for other in map(Subject, others):
        label = other.technique.name
        yield Check(f"composes[after-{label}]", name, partial(promises.composes_after, subject, other, nets))
        yield Check(f"composes[before-{label}]", name, partial(promises.composes_after, other, subject, nets))
        yield Check(f"composes[with-{label}]", name, partial(promises.composes_with, subject, other, nets))


def _installed(technique: Technique) -> list[Technique]:
    """Every other technique at its example, and a training; one whose example is wrong fails its own check."""
    found: list[Technique] = [Epochs()]
    for name, kind in sorted(catalog().techniques.items()):
        if name != technique.name:
            try:
                found.append(kind(**kind.example))
            except Exception:
                continue
    return found
