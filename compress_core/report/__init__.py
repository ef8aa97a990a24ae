"""All steps side by side; `python -m compress_core.report` is the report stage.

The figures of a step come from its metrics file; time alone is measured here, where every network is called
beside the dense one in one process. `report/report.json` holds the figures, `report/report.html` shows them.
Importing this module imports no torch, so that `compress report` answers in a moment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from compress_core.errors import ArtifactError
from compress_core.files import to_json
from compress_core.timing import Estimate
from compress_core.workspace import Workspace

JSON_FILE = "report.json"
PAGE_FILE = "report.html"
AGAIN = "run `dvc repro`"

Read = TypeVar("Read", bound=BaseModel)

Plain = Annotated[dict[str, Any], BeforeValidator(dict), PlainSerializer(lambda value: json.loads(json.dumps(value)))]
"""A mapping of JSON values."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class QualityFigures(_Figures):
    """The task's metric on the test split, with its 95 % interval."""

    name: str
    """What the metric is called."""
    value: float
    """The metric itself."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    examples: int
    """How many examples it rests on."""
    higher_is_better: bool = True
    """Whether a greater value is the better one."""
    also: dict[str, float] = Field(default_factory=dict)
    """The task's further metrics, by name."""

    def gain_over(self, other: QualityFigures) -> float:
        """How much better than another one: above 0 is better, whichever way the metric counts."""
        return (self.value - other.value) * (1 if self.higher_is_better else -1)

    def keeps(self, reference: QualityFigures) -> bool:
        """Whether it is within the reference's interval, or better."""
        return self.value >= reference.low if self.higher_is_better else self.value <= reference.high


class CurveFigures(_Figures):
    """What a technique measured along a parameter."""

    name: str
    """What was varied."""
    x: str
    """What the first figure of each point is."""
    y: str
    """What the second figure is."""
    points: tuple[tuple[float, float], ...]
    """The points, in the order in which they were measured."""


class Metrics(_Figures):
    """What `metrics/STEP.json` says of a step."""

    quality: QualityFigures
    """On the test split; for an export, of the exported file in its runtime."""
    bytes: int = Field(ge=0)
    """The files that would be shipped, as they lie on disk."""
    parameters: int = Field(ge=0)
    """How many parameters the network has."""
    nonzero: int = Field(ge=0)
    """How many of them are not zero."""
    macs: int = Field(ge=0)
    """Multiplications with their additions, for one example."""
    notes: tuple[str, ...] = ()
    """What the techniques said they did."""
    curves: tuple[CurveFigures, ...] = ()
    """What the techniques measured along a parameter."""

    @property
    def zeros(self) -> float:
        """The share of parameters that are zero."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0


class Times(_Figures):
    """Time of one call, and how many times faster it is than the dense network."""

    batch: int
    """Examples in one call."""
    threads: int
    """Threads that computed it."""
    opponent: str
    """The dense network in the same runtime."""
    best: str
    """The dense network in its fastest runtime."""
    milliseconds: Estimate
    """Of one call."""
    speedup: Estimate
    """The opponent's time over the own."""
    speedup_to_best: Estimate
    """The time of the dense network in its fastest runtime over the own."""
    speedup_to_eager: Estimate
    """The time of the dense network in eager torch over the own."""
    disturbed: bool
    """Whether the dense networks' own times disagreed, so that none of these figures can be trusted."""


class Row(_Figures):
    """One network of the report."""

    name: str
    """The step, or `REFERENCE as FORMAT` for the dense network that was exported to be compared with."""
    kind: Literal["model", "export"]
    """A network in torch, or a file for another runtime."""
    format: str
    """`torch`, or the export format."""
    input: str | None
    """The step whose network came in."""
    teacher: str | None
    """The step whose network taught."""
    use: Plain
    """The techniques with their parameters."""
    opponent: str
    """The dense network in the same format, which is what this one is compared with."""
    is_step: bool = True
    """Whether it is a step of the recipe."""
    metrics: Metrics
    """What was measured when the step ran."""
    smaller: float
    """Bytes of the dense network in the same format over the own bytes."""
    difference: float
    """Quality minus the reference's: in points (hundredths) for a share of examples, else in the metric's unit."""
    latency: tuple[Times, ...] = ()
    """Times, at each batch size."""
    remarks: tuple[str, ...] = ()
    """What the figures mean, in words."""

    @property
    def is_dense(self) -> bool:
        """Whether others are compared with it."""
        return self.opponent == self.name


class Machine(_Figures):
    """Where the times were measured."""

    processor: str
    """The model of the processor."""
    cores: int
    """Logical cores that the process may use."""
    threads: int
    """Threads that each network computed on."""
    device: str
    """Where torch computed; exported files run where their runtime does."""
    system: str
    """Operating system and architecture."""
    versions: dict[str, str]
    """Versions of what computes."""


class Report(_Figures):
    """All steps of a recipe side by side."""

    reference: str
    """The dense network's step."""
    points: bool
    """Whether quality is a share of examples, whose differences are counted in points."""
    headline: str | None
    """The row that is worth naming first: the smallest one that keeps the quality."""
    order: tuple[str, ...]
    """The names of all rows, in an order in which they can run."""
    steps: dict[str, Row]
    """By name, with the dense network in each further format after the reference."""
    machine: Machine
    """Where the times were measured."""
    measured: tuple[str, ...]
    """Which figures are measured, which are counted, and which are not there."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows in their order."""
        return tuple(self.steps[name] for name in self.order)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return self.model_dump(mode="json")


MEASURED = (
    "Measured: quality, on the test split, with its 95 % interval; bytes, of the files as they lie on disk; time, as "
    "the median with its 95 % interval of interleaved blocks in one process.",
    "Counted, not measured: MACs, for one example, where a multiplication with zero counts like any other; "
    "parameters and their zeros.",
    "Not measured: energy and peak memory.",
)


def read_metrics(path: Path) -> Metrics:
    """Read the metrics of one step.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return _read(Metrics, path)


def load_report(workspace: Workspace) -> Report:
    """Read the last report.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    return _read(Report, workspace.report / JSON_FILE)


def write_report(report: Report, workspace: Workspace) -> None:
    """Write the report as JSON and as a page; its folder is replaced whole."""
    from compress_core.files import replacing, write_text
    from compress_core.report.rendering import page

    with replacing(workspace.report) as folder:
        write_text(folder / JSON_FILE, report_json(report))
        write_text(folder / PAGE_FILE, page(report))


def report_json(report: Report) -> str:
    """The report as JSON."""
    return to_json(report.to_dict())


def _read(kind: type[Read], path: Path) -> Read:
    where = str(path)
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError("it is missing", where=where, mend=AGAIN) from None
    except ValidationError as error:
        mistake = error.errors()[0]
        place = ".".join(map(str, mistake["loc"]))
        raise ArtifactError(f"it is damaged: {place}: {mistake['msg']}", where=where, mend=AGAIN) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"it cannot be read: {error}", where=where, mend=AGAIN) from None
