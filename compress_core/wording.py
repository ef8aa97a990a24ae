"""Figures in words, for people: the same ones in the terminal and on the page."""

from __future__ import annotations

from compress_core.report import Report, Row, Times
from compress_core.timing import Estimate

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def ratio(value: float) -> str:
    """A ratio with as many digits as mean something."""
    return f"{number(value)}{TIMES}"


def number(value: float) -> str:
    """A ratio without its sign."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio_interval(estimate: Estimate) -> str:
    """The 95 % interval of a ratio."""
    return f"{number(estimate.low)} to {ratio(estimate.high)}"


def milliseconds(value: float) -> str:
    """A time with three digits."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms" if value >= 0.001 else f"{value:.1e} ms"


def count(value: float) -> str:
    """A large number, in thousands, millions or billions."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Bytes in kB, MB or GB of 1000."""
    return f"{count(value)}B" if value >= 1000 else f"{value:.0f} B"


def quality(value: float, *, points: bool) -> str:
    """A share of examples as a percentage, any other metric as it is."""
    return f"{100 * value:.1f} %" if points else f"{value:.4g}"


def signed(value: float, *, points: bool) -> str:
    """A difference of quality with its sign, in points if it is one of shares."""
    text = f"{abs(value):.1f}" if points else f"{abs(value):.3g}"
    sign = "" if float(text) == 0 else MINUS if value < 0 else "+"
    unit = (" point" if text == "1.0" else " points") if points else ""
    return f"{sign}{text}{unit}"


def speed(estimate: Estimate, opponent: str) -> str:
    """How fast against an opponent; a difference that the interval does not show is none."""
    if estimate.low > 1:
        return f"{number(estimate.value)} times as fast as {opponent}"
    if estimate.high < 1:
        return f"slower than {opponent} ({estimate.value:.2f} times as fast)"
    return f"no faster than {opponent}"


def headline_words(report: Report) -> str:
    """The one sentence that somebody would repeat; size and time are against the best that the dense network offers."""
    if report.headline is None:
        return f"There is nothing beside {report.reference} to compare it with."
    row, reference = report.row(report.headline), report.row(report.reference)
    small = (
        f"{number(row.smaller)} times smaller than {row.opponent}"
        if row.smaller > 1
        else f"no smaller than {row.opponent}"
    )
    found = [f"{row.name} is {small}", *(_pace(row.latency[0], report) if row.latency else ())]
    kept = "within" if _within(row, reference) else "outside"
    name, change = row.metrics.quality.name, signed(row.difference, points=report.points)
    value = quality(row.metrics.quality.value, points=report.points)
    return f"{', '.join(found)}; its {name} is {value} ({change}, {kept} the interval of {report.reference})."


def _pace(times: Times, report: Report) -> list[str]:
    """The headline's ratio is against the dense network in its fastest runtime; eager torch comes second."""
    best = times.best if times.best == report.reference else f"{times.best}, the dense network's fastest runtime"
    found = [f"at batch {times.batch} {speed(times.speedup_to_best, best)}"]
    if times.best != report.reference:
        found.append(speed(times.speedup_to_eager, f"{report.reference} in eager torch"))
    if times.disturbed:
        found.append("on a machine that was disturbed while it was timed")
    return found


def _within(row: Row, reference: Row) -> bool:
    own, other = row.metrics.quality, reference.metrics.quality
    return other.low <= own.value <= other.high
