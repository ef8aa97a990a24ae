"""A large checkpoint rewritten to 8-bit integers, tensor by tensor: memory, and speed beside a copy.

A synthetic float32 safetensors file with matrices of 4096 columns, whose numbers are normally distributed (a block of
them, shifted from row to row), is shrunk by `compress_core.checkpoints.shrink` and copied by `shutil.copyfile` and
fsync, by turns, each in a process of its own; both read from the page cache what fits there, and both end when the
disk has what they wrote. The speeds are bytes of the source per second, the best of the turns. Goals: at most 1 GB of
memory at the peak of the process, and at least half the speed of the copy. The restored file is not timed.

Time: 2 minutes with a file of 2 GB; 5 minutes with --full and one of 8 GB. Needs free disk of 2.4 times the file, in
the folder of temporary files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Bench, Figure

GIGABYTE = 1_000_000_000
COLUMNS, ROWS = 4096, 4096
SIZES = {False: 2, True: 8}
"""Of the file, in GB, without and with --full."""
TURNS = {False: 4, True: 2}
SHRINK = """
import json, re, sys, time
from compress_core.checkpoints import shrink
found = shrink(sys.argv[1], sys.argv[2])
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps([found.seconds, peak, found.bytes_after, found.worst.error, time.process_time()]))
"""
COPY = """
import json, os, shutil, sys, time
start = time.perf_counter()
shutil.copyfile(sys.argv[1], sys.argv[2])
with open(sys.argv[2], "rb+") as stream:
    os.fsync(stream.fileno())
print(json.dumps([time.perf_counter() - start]))
"""


def run(bench: Bench) -> Iterator[Figure]:
    """Memory, speed, bytes and error."""
    size, turns = SIZES[bench.full] * GIGABYTE, TURNS[bench.full]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _refuse_little_space(folder, size)
        source = folder / "large.safetensors"
        bench.say(f"writing {size / GIGABYTE:.0f} GB")
        _write(source, size)
        size = source.stat().st_size
        copied: list[float] = []
        shrunk: list[list[float]] = []
        for turn in range(turns):
            bench.say(f"turn {turn + 1} of {turns}")
            copied += _alone(COPY, source, folder / "copy.safetensors")
            shrunk.append(_alone(SHRINK, source, folder / "small.safetensors"))
    seconds = min(found[0] for found in shrunk)
    _, peak, after, error, _ = max(shrunk, key=lambda found: found[1])
    busy = min(found[4] for found in shrunk)
    gigabytes = f"a file of {size / GIGABYTE:.2f} GB"
    speed, copy_speed = (size / value / 1e6 for value in (seconds, min(copied)))
    yield Figure("peak memory", peak / 1e6, "MB", False, "none", goal=1000.0, note=f"of the whole process; {gigabytes}")
    yield Figure("speed", speed, "MB/s", True, "copy and fsync", copy_speed, note=f"best of {turns} turns; {gigabytes}")
    share = 100 * speed / copy_speed
    shares = [100 * one / found[0] for one, found in zip(copied, shrunk, strict=True)]
    note = (
        "the interval is that of the turns; the copy writes four times as many bytes; shrinking took "
        f"{busy:.1f} s of processor time; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    yield Figure(
        "speed as a share of the copy's",
        share,
        "%",
        True,
        "copy and fsync",
        100.0,
        goal=50.0,
        low=min(shares),
        high=max(shares),
        note=note,
    )
    yield Figure("the file", after, "bytes", False, "float32", size, note=f"largest relative error {100 * error:.2f} %")


def _refuse_little_space(folder: Path, size: int) -> None:
    from compress_core.errors import DataError

    free = shutil.disk_usage(folder).free
    if free < 2.4 * size:
        what = f"{2.4 * size / GIGABYTE:.1f} GB are needed, and {free / GIGABYTE:.1f} are free"
        raise DataError(what, where=str(folder), mend="set TMPDIR to a folder on a disk with more space")


def _write(path: Path, size: int) -> None:
    """A safetensors file of matrices, written in pieces of a row's block."""
    import numpy as np

    one = 4 * ROWS * COLUMNS
    count = size // one
    content = {
        f"layers.{index}.weight": {
            "dtype": "F32",
            "shape": [ROWS, COLUMNS],
            "data_offsets": [index * one, (index + 1) * one],
        }
        for index in range(count)
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).standard_normal(ROWS * COLUMNS, np.float32) * np.float32(0.02)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for index in range(count):
            stream.write(np.roll(values, index).data)
        stream.flush()
        os.fsync(stream.fileno())


def _alone(code: str, source: Path, target: Path) -> list[float]:
    """What a fresh process prints; what it writes is removed."""
    try:
        command = [sys.executable, "-c", code, str(source), str(target)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: list[float] = json.loads(done.stdout)
        return found
    finally:
        target.unlink(missing_ok=True)
