"""Figures in words, for people: the same ones in the terminal and on the page."""

from __future__ import annotations

from compress_core.report import Report, Times
from compress_core.timing import Estimate

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def ratio(value: float) -> str:
    """A ratio with as many digits as mean something."""
    return f"{number(value)}{TIMES}"


def number(value: float) -> str:
    """A ratio without its sign."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def rounded(value: float) -> str:
    """A ratio as it stands in a sentence."""
    return f"{value:.1f}" if 2 <= value < 99.95 else number(value)


def ratio_interval(estimate: Estimate) -> str:
    """The 95 % interval of a ratio."""
    return f"{number(estimate.low)} to {ratio(estimate.high)}"


def milliseconds(value: float) -> str:
    """A time with three digits."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms" if value >= 0.001 else f"{value:.1e} ms"


def count(value: float) -> str:
    """A large number with three digits, in thousands, millions, billions or more."""
    near = float(f"{value:.3g}")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(near) >= size:
            return f"{near / size:.3g} {letter}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Bytes in kB, MB or GB of 1000."""
    found = count(value)
    return f"{found}B" if found[-1].isalpha() else f"{found} B"


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
        return f"{rounded(estimate.value)} times as fast as {opponent}"
    if estimate.high < 1:
        return f"slower than {opponent} ({estimate.value:.2f} times as fast)"
    return f"no faster than {opponent}"


def headline_words(report: Report) -> str:
    """The one sentence that somebody would repeat; time is against the fastest runtime of the dense network."""
    if report.headline is None:
        return f"There is nothing beside {report.reference} to compare it with."
    row, reference = report.steps[report.headline], report.steps[report.reference]
    small = f"{rounded(row.smaller)} times smaller than" if row.smaller > 1 else "no smaller than"
    pace = f"; {_pace(row.latency[0], report.reference)}" if row.latency else ""
    own, other = row.metrics.quality, reference.metrics.quality
    value, change = quality(own.value, points=report.points), signed(row.difference, points=report.points)
    kept = "within" if other.low <= own.value <= other.high else "outside"
    return (
        f"{row.name} is {small} {row.opponent}{pace}; {own.name} is {value} "
        f"({change}, {kept} the interval of {report.reference})."
    )


def _pace(times: Times, reference: str) -> str:
    """Against the best dense runtime first, against eager torch second."""
    found = f"at batch {times.batch} it is {speed(times.speedup_to_best, f'{times.best}')}"
    if times.best != reference:
        found += f", the fastest dense runtime, and {speed(times.speedup_to_eager, 'eager torch')}"
    return f"{found} (on a disturbed machine)" if times.disturbed else found
