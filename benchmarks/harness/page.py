"""docs/benchmarks.md, and the table of goals in the README: both made from results.json.

`python -m benchmarks.harness.page` writes them again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks.harness.results import ROOT, Entry, read
from benchmarks.harness.running import benchmarks
from compress_core.files import write_text

PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures of benchmarks/results.json -->\n", "<!-- end of the figures -->\n"
HEAD = """\
# Benchmarks

Made from `benchmarks/results.json` by `python -m benchmarks`, which measures each figure beside a named peer in the
same run. A ratio above 1 is better than the peer, whichever way is better. A goal that was not reached is marked
**not met**.

```
python -m benchmarks --list          # what there is, and how long it takes
python -m benchmarks sparse_lenets   # run one, and write down what it finds
python -m benchmarks --all --full    # all, by their long protocols
```

`COMPRESS_DATA` names the folder of the data sets and `COMPRESS_MODELS` that of published weights.
"""
MODES = {"default": "", "full": " (`--full`)"}


def page(found: Sequence[Entry]) -> str:
    """The page of all figures."""
    about = benchmarks()
    parts = [HEAD]
    for (name, mode), figures in groupby(found, key=lambda entry: (entry["benchmark"], entry["mode"])):
        parts.append(f"## {name}{MODES[mode]}\n\n{about.get(name, '')}\n")
        parts += section(list(figures))
    return "\n".join(parts)


def section(figures: Sequence[Entry]) -> Iterator[str]:
    """The table of one run, the remarks below it, and what it ran on."""
    yield "| figure | value | peer | ratio | goal | |\n|---|---|---|---|---|---|"
    for entry in figures:
        yield row(_name(entry), _value(entry), _peer(entry), _ratio(entry), _goal(entry), _verdict(entry))
    yield ""
    first = figures[0]
    yield from (f"- {entry['name']}: {entry['note']}" for entry in figures if entry["note"])
    kept = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    yield f"- {_minutes(first['seconds'])} on {first['machine_kind']}; {kept}\n"


def goals(found: Sequence[Entry]) -> str:
    """The table of the figures that have a goal, for the README: of each benchmark its longest run."""
    longest = {entry["benchmark"]: entry["mode"] for entry in found}
    rows = [entry for entry in found if entry["goal"] is not None and entry["mode"] == longest[entry["benchmark"]]]
    lines = ["| benchmark | figure | value | goal | |\n|---|---|---|---|---|"]
    for entry in rows:
        name = f"{entry['benchmark']}{MODES[entry['mode']]}"
        lines.append(row(name, entry["name"], _value(entry), _goal(entry), _verdict(entry)))
    return "\n".join(lines) + "\n"


def with_goals(readme: str, found: Sequence[Entry]) -> str:
    """The README with the table of goals between its two marks; without the marks it stays as it is."""
    pattern = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{goals(found)}\n{match[2]}", readme)


def write_pages(found: Sequence[Entry]) -> None:
    """Write both."""
    write_text(PAGE, page(found))
    before = README.read_text(encoding="utf-8")
    if (after := with_goals(before, found)) != before:
        write_text(README, after)


def row(*cells: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def number(value: float) -> str:
    """Four significant digits, and all digits of a whole number."""
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _name(entry: Entry) -> str:
    return f"{entry['name']}{_seeds(entry['seeds'])}"


def _seeds(seeds: Iterable[int]) -> str:
    count = len(list(seeds))
    return f" (mean of {count} seeds)" if count > 1 else ""


def _value(entry: Entry) -> str:
    interval = "" if entry["low"] is None else f" ({number(entry['low'])} to {number(entry['high'])})"
    return f"{number(entry['value'])}{_unit(entry)}{interval}"


def _peer(entry: Entry) -> str:
    beside = "" if entry["peer_value"] is None else f": {number(entry['peer_value'])}{_unit(entry)}"
    return f"{entry['peer']}{beside}"


def _ratio(entry: Entry) -> str:
    return "" if entry["ratio"] is None else number(entry["ratio"])


def _goal(entry: Entry) -> str:
    if entry["goal"] is None:
        return ""
    return f"{'at least' if entry['higher_is_better'] else 'at most'} {number(entry['goal'])}{_unit(entry)}"


def _verdict(entry: Entry) -> str:
    return {None: "", True: "met", False: "**not met**"}[entry["met"]]


def _unit(entry: Entry) -> str:
    return f" {entry['unit']}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


if __name__ == "__main__":
    write_pages(read())
