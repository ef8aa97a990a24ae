"""What the figures of a step mean, in so many words: slower, no smaller, nothing changed, quality lost.

Pure functions of the figures; a speed-up counts only if its whole 95 % interval is above 1, and a loss of
quality only if it leaves the reference's 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from compress_core.report import QualityFigures, Row, Times

NOTHING_CHANGED = "nothing changed"
"""What a technique says that changed nothing."""
ZEROS_WORTH_SAYING = 0.01
"""The share of zeros from which they are remarked upon."""


def remarks(row: Row, dense: Row, reference: Row, *, points: bool, same_as_input: bool = False) -> tuple[str, ...]:
    """All that has to be said of a row.

    Args:
        row: the network.
        dense: the dense network in the same format.
        reference: the dense network, whose quality everything is compared with.
        points: whether quality is a share of examples, whose differences are counted in points.
        same_as_input: whether every tensor of the network is that of its input.
    """
    found = [*_idle(row, same_as_input)]
    if not row.is_dense:
        found += [*_speed(row), *_size(row, dense)]
    found += _zeros(row)
    if row.name != reference.name:
        found.append(quality_remark(row.metrics.quality, reference.metrics.quality, points=points))
    if disturbed := [times for times in row.latency if times.disturbed]:
        found.append(f"timing disturbed {_at(disturbed)}: other work on the machine, do not trust these times")
    return tuple(found)


def quality_remark(own: QualityFigures, reference: QualityFigures, *, points: bool) -> str:
    """Whether quality was lost.

    Args:
        own: the network's quality.
        reference: the dense network's.
        points: whether it is a share of examples, whose differences are counted in points.
    """
    gain = own.gain_over(reference)
    size = f"{abs(100 * gain):.1f} points" if points else f"{abs(gain):.3g} of {own.name}"
    if reference.low <= own.value <= reference.high:
        return "quality within the interval of the reference"
    if own.keeps(reference):
        return f"quality better than the reference: {size} beyond it, outside its interval"
    return f"quality lost: {size} worse than the reference, outside its interval"


def _idle(row: Row, same_as_input: bool) -> Iterable[str]:
    if same_as_input:
        yield f"changes nothing: every tensor is that of {row.input!r}"
        return
    for note in row.metrics.notes:
        if NOTHING_CHANGED in note:
            yield f"{note.partition(':')[0]} changes nothing" if ":" in note else "changes nothing"


def _speed(row: Row) -> Iterable[str]:
    latency = row.latency
    slower = [times for times in latency if times.speedup.high < 1]
    equal = [times for times in latency if times.speedup.low <= 1 <= times.speedup.high]
    if slower:
        yield f"no faster than the reference, but slower: {_each(slower, lambda times: times.speedup.value)}"
    if equal:
        yield f"no faster than the reference {_at(equal)}"
    beaten = [times for times in latency if times.speedup.low > 1 and times.speedup_to_best.high < 1]
    if beaten and row.kind == "export":
        yield (
            f"faster than the dense network in its own runtime, but slower than {beaten[0].best}: "
            f"{_each(beaten, lambda times: times.speedup_to_best.value)}"
        )


def _size(row: Row, dense: Row) -> Iterable[str]:
    if row.metrics.bytes >= dense.metrics.bytes:
        yield f"no smaller than the reference: {row.metrics.bytes:,} bytes against {dense.metrics.bytes:,}"


def _zeros(row: Row) -> Iterable[str]:
    if row.metrics.zeros >= ZEROS_WORTH_SAYING:
        yield (
            f"zeros are stored dense: {100 * row.metrics.zeros:.0f} % of the weights are zero and cost their full bytes"
        )


def _at(latency: Sequence[Times]) -> str:
    return f"at batch {' and '.join(str(times.batch) for times in latency)}"


def _each(latency: Sequence[Times], ratio: Callable[[Times], float]) -> str:
    return ", ".join(f"{ratio(times):.2f} times as fast at batch {times.batch}" for times in latency)
