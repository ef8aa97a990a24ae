"""The fastest of several export formats for one network on this machine.

    chosen = argmin over the candidates with loss <= max_loss of  time of a call

Each candidate is exported, judged on the validation split in its own runtime, and timed by turns with the others and
with the network in eager torch (see `compress_core.timing`). A candidate that fails is told with its reason. Cost: an
export and a pass over the validation split for each, and some seconds of measuring.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress_core.artifact import origins, trusting
from compress_core.catalog import catalog
from compress_core.errors import ArtifactError, CompressError, ModelError
from compress_core.files import MANIFEST
from compress_core.timing import measure

if TYPE_CHECKING:
    from compress_core.measure import Quality
    from compress_core.parts import Exporter
    from compress_core.run import Run
    from compress_export import Fastest

EAGER = "torch"
SECONDS = 3.0
"""What one attempt of the measurement may take."""


@dataclass(frozen=True)
class Candidate:
    """A format in which the network was exported."""

    name: str
    call: Callable[..., Any]
    loss: float
    """Points of validation quality that it loses to the network in torch."""


def fastest(model: nn.Module, exporters: Mapping[str, Exporter], wishes: Fastest, run: Run) -> Exporter:
    """Measure the candidates and return the fastest that keeps the quality; tells and records all figures.

    Raises:
        ModelError: none does.
    """
    model = deepcopy(model).cpu().eval()
    run_here = replace(run, device="cpu")
    reference = run_here.evaluate(model)
    found: list[Candidate] = []
    out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, exporter in exporters.items():
            try:
                found.append(_candidate(model, exporter, Path(folder) / name, reference, run_here))
            except CompressError as error:
                out[name] = error.what
        speedups, milliseconds = _measured(model, found, wishes.batch, run_here)
    out |= {
        entry.name: f"it loses {entry.loss:.2f} points of {reference.name}, {wishes.max_loss:g} are allowed"
        for entry in found
        if entry.loss > wishes.max_loss
    }
    kept = [entry.name for entry in found if entry.name not in out]
    if not kept:
        reasons = "; ".join(f"{name}: {why}" for name, why in out.items())
        raise ModelError(
            f"no candidate can be taken: {reasons}", where="fastest", mend="raise `max_loss` or add formats"
        )
    best = min(kept, key=milliseconds.__getitem__)
    out |= {name: "it is slower" for name in kept if name != best}
    figures = {
        entry.name: {
            "milliseconds": round(milliseconds[entry.name], 4),
            "speedup_to_eager": round(speedups[entry.name], 3),
            "points_lost": round(entry.loss, 4),
        }
        for entry in found
    }
    run.record(
        "fastest",
        {
            "chosen": best,
            "batch": wishes.batch,
            "threads": torch.get_num_threads(),
            "candidates": figures,
            "not_taken": out,
        },
    )
    for line in _told(best, figures, out, wishes.batch):
        run.say(f"fastest: {line}")
    return exporters[best]


def format_of(folder: Path) -> str:
    """The format in which the files of a folder were written.

    Raises:
        ArtifactError: the manifest is missing or damaged, or names a format that is not installed.
    """
    try:
        name = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["exporter"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{MANIFEST} does not say in which format it is: {error!r}", where=str(folder), mend="export it again"
        ) from error
    known = [kind for kind in catalog().exporters if kind != "fastest"]
    if name not in known:
        raise ArtifactError(
            f"it is in the format {name!r}, which no plugin has",
            where=str(folder),
            mend=catalog().unknown("export format", str(name), known),
        )
    return str(name)


def _candidate(model: nn.Module, exporter: Exporter, folder: Path, reference: Quality, run: Run) -> Candidate:
    if lack := exporter.missing():
        raise ModelError("it is not installed", mend=f"pip install '{lack}'")
    folder.mkdir()
    exporter.export(model, folder, run.example)
    with trusting(origins(model)):
        call = exporter.load(folder, torch.get_num_threads())
    return Candidate(exporter.name, call, _quality(call, run).points_below(reference))


def _quality(call: Callable[..., Any], run: Run) -> Quality:
    from compress_core.measure import quality

    return quality(call, run.validation(), run.task)


def _measured(
    model: nn.Module, found: list[Candidate], batch: int, run: Run
) -> tuple[dict[str, float], dict[str, float]]:
    """How many times faster than eager torch each is, and milliseconds per call."""
    split = run.splits.train
    arguments, keywords = run.task.inputs(split.take(torch.arange(batch) % len(split)))

    def eager() -> Any:
        with torch.no_grad():
            return model(*arguments, **keywords)

    calls: dict[str, Callable[[], Any]] = {EAGER: eager}
    for entry in found:
        calls[entry.name] = partial(entry.call, *arguments, **keywords)
    timing = measure(calls, [EAGER], seconds=SECONDS)
    names = [entry.name for entry in found]
    return (
        {name: timing.speedup(name, EAGER).value for name in names},
        {name: 1000 * timing.time(name).value for name in names},
    )


def _told(best: str, figures: Mapping[str, Mapping[str, float]], out: Mapping[str, str], batch: int) -> list[str]:
    lines = []
    for name in sorted({*figures, *out}, key=lambda name: (name != best, name)):
        shown = f"{name}"
        if name in figures:
            own = figures[name]
            shown += (
                f" takes {own['milliseconds']:.3g} ms at batch {batch}, {own['speedup_to_eager']:.2f} times as fast as "
                f"eager torch, and loses {own['points_lost']:.2f} points"
            )
        lines.append(f"{shown}: {'chosen' if name == best else f'not taken, {out[name]}'}")
    return lines
