"""The report as a table for a terminal and as one HTML page that opens offline.

The page holds its style and its drawings itself and fetches nothing. All that comes from a recipe or a technique
is text, which the template escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress_core.report import CurveFigures, Report, Row, Times, wording
from compress_core.report.curves import Line, line
from compress_core.report.dag import Node, graph
from compress_core.report.scatter import Point, Scatter, scatter

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

TEMPLATES = Path(__file__).parent / "templates"
BAD = ("no faster", "no smaller", "quality lost", "changes nothing", "slower", "faster than the dense", "timing")
GOOD = ("quality within", "quality better")


@dataclass(frozen=True)
class Plot:
    """A scatter plot with its words."""

    key: str
    title: str
    description: str
    x_label: str
    y_label: str
    drawing: Scatter


@dataclass(frozen=True)
class Measured:
    """A curve with its words."""

    name: str
    x_label: str
    y_label: str
    description: str
    drawing: Line


def table(report: Report) -> Table:
    """The figures for a terminal, with the remarks and with what was measured and what was not."""
    from rich.table import Table
    from rich.text import Text

    whole = Table.grid(padding=(0, 0, 1, 0))
    whole.add_row(Text(wording.headline_words(report), style="bold"))
    whole.add_row(_figures(report))
    said = Table.grid(padding=(0, 2, 0, 0))
    for name, remark in _said(report):
        said.add_row(Text(name, style="bold"), Text(remark, style=_STYLES[tone(remark)]))
    if said.row_count:
        whole.add_row(said)
    whole.add_row(Text("\n".join([machine_words(report), *report.measured]), style="dim"))
    return whole


def common_remarks(report: Report) -> tuple[str, ...]:
    """What would have to be said of every row, and is said once."""
    first, *others = (row.remarks for row in report.rows)
    return tuple(remark for remark in first if others and all(remark in other for other in others))


def page(report: Report) -> str:
    """The report as an HTML page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tone"] = tone
    nodes = [
        Node(row.name, row.input, row.teacher, " + ".join(row.use), row.kind == "export", row.is_dense)
        for row in report.rows
        if row.is_step
    ]
    return environment.get_template("report.html.j2").render(
        report=report,
        reference=report.steps[report.reference],
        headline=report.steps[report.headline] if report.headline else None,
        sentence=wording.headline_words(report),
        common=common_remarks(report),
        machine=machine_words(report),
        plots=plots(report),
        curves=curves(report),
        graph=graph(nodes),
        words=wording,
    )


def plots(report: Report) -> list[Plot]:
    """Quality against bytes, and against the time of one call where there is one."""
    metric = report.rows[0].metrics.quality
    better = "higher" if metric.higher_is_better else "lower"
    y_label = f"{metric.name}, {better} is better"

    def plot(key: str, title: str, x_label: str, cost: Callable[[Row], float], text: Callable[[float], str]) -> Plot:
        drawing = scatter(
            [_point(row, cost(row), text, points=report.points) for row in report.rows],
            higher_is_better=metric.higher_is_better,
            x_text=text,
            y_text=lambda value: wording.quality(value, points=report.points),
        )
        front = [mark.point.name for mark in drawing.marks if mark.on_front]
        description = f"{y_label}. On the Pareto front, which no other step beats in both: {', '.join(front)}."
        return Plot(key, title, description, x_label, y_label, drawing)

    found = [
        plot("bytes", "Quality against size", "bytes", lambda row: max(1, row.metrics.bytes), wording.size),
    ]
    if all(row.latency for row in report.rows):
        batch = report.rows[0].latency[0].batch
        found.append(
            plot(
                "time",
                "Quality against time",
                f"time of one call at batch {batch}",
                lambda row: row.latency[0].milliseconds.value,
                wording.milliseconds,
            )
        )
    return found


def curves(report: Report) -> dict[str, list[Measured]]:
    """What the techniques of each step measured along a parameter, by the step's name."""
    return {
        row.name: [_measured(curve) for curve in row.metrics.curves if curve.points]
        for row in report.rows
        if row.metrics.curves
    }


def _measured(curve: CurveFigures) -> Measured:
    ends = f"from {curve.points[0][1]:.4g} at {curve.points[0][0]:.4g} to {curve.points[-1][1]:.4g}"
    description = f"{curve.y} over {curve.x}: {ends} at {curve.points[-1][0]:.4g}."
    return Measured(curve.name, curve.x, curve.y, description, line(curve.points))


def machine_words(report: Report) -> str:
    """Where the times were measured."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    threads = f"{machine.threads} thread{'s' if machine.threads > 1 else ''} each"
    return (
        f"Timed on {machine.processor} ({machine.cores} cores, {machine.system}), {threads}, "
        f"torch on {machine.device}; {versions}."
    )


def tone(remark: str) -> str:
    """Whether a remark is `good`, `bad` or neither (`plain`)."""
    return "bad" if remark.startswith(BAD) else "good" if remark.startswith(GOOD) else "plain"


_STYLES = {"good": "green", "bad": "yellow", "plain": ""}


def _said(report: Report) -> Iterator[tuple[str, str]]:
    """Remarks, each beside the name of its row, which is written once."""
    common = common_remarks(report)
    for index, remark in enumerate(common):
        yield "" if index else "all", remark
    for row in report.rows:
        for index, remark in enumerate(remark for remark in row.remarks if remark not in common):
            yield "" if index else row.name, remark


def _figures(report: Report) -> Table:
    """Two lines a row: ratios above, what was measured below. It fits into 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    figures = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    figures.add_column("step", overflow="fold", min_width=16)
    heads = ["smaller\nsize"]
    heads += [f"faster (eager)\ntime, batch {times.batch}" for times in report.rows[0].latency]
    for head in [*heads, f"{'points' if report.points else 'change'}\n{report.rows[0].metrics.quality.name}", "\nMACs"]:
        figures.add_column(head, justify="right", no_wrap=True)
    for row in report.rows:
        kind = row.format if row.kind == "export" else " + ".join(row.use)
        name = Text.assemble((row.name, "bold"), "\n", (kind, "dim"))
        cells = [_cell("" if row.is_dense else wording.ratio(row.smaller), wording.size(row.metrics.bytes))]
        cells += [_timing_cell(row, times, report) for times in row.latency]
        change = "" if row.name == report.reference else wording.signed(row.difference, points=report.points)
        cells.append(_cell(change.partition(" ")[0], wording.quality(row.metrics.quality.value, points=report.points)))
        figures.add_row(name, *cells, Text(f"\n{wording.count(row.metrics.macs)}"))
    return figures


def _timing_cell(row: Row, times: Times, report: Report) -> Text:
    own = "" if row.is_dense else wording.ratio(times.speedup.value)
    eager = "" if row.opponent == report.reference else f" ({wording.ratio(times.speedup_to_eager.value)})"
    mark = "?" if times.disturbed and own + eager else ""
    return _cell(mark + (own + eager).strip(), wording.milliseconds(times.milliseconds.value))


def _cell(ratio: str, measured: str) -> Text:
    from rich.text import Text

    return Text.assemble((ratio or "\N{EN DASH}", "bold"), f"\n{measured}")


def _point(row: Row, cost: float, text: Callable[[float], str], *, points: bool) -> Point:
    found = row.metrics.quality
    low, value, high = (wording.quality(end, points=points) for end in (found.low, found.value, found.high))
    title = f"{row.name}: {found.name} {value} ({low} to {high}), {text(cost)}"
    return Point(row.name, cost, found.value, found.low, found.high, row.is_dense, row.kind == "export", title)
