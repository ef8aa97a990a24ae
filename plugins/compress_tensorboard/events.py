"""One event file of TensorBoard: scalars, histograms, text and the parameters of the run.

Records are protocol buffers in TFRecord framing, written by TensorBoard's own `RecordWriter`. The file has a fixed
name, without the host, process and time that TensorBoard's own writer puts there, and replaces an earlier one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

FILE = "events.out.tfevents.compress"
"""TensorBoard finds files by `tfevents` in their names."""
BINS = 64
"""Of equal width, in a histogram."""


class EventFile:
    """An open event file; every entry is on the disk when its call returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / FILE).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve."""
        self._add(summary.scalar(name, value), step)

    def histogram(self, name: str, values: Tensor, step: int = 0) -> None:
        """The distribution of the finite values of a tensor; nothing if there are none."""
        values = values.detach().float().cpu().flatten()
        values = values[values.isfinite()]
        if values.numel():
            self._add(summary.histogram(name, values.numpy(), BINS), step)

    def text(self, name: str, value: str) -> None:
        """A text, in Markdown."""
        self._add(summary.text(name, value), 0)

    def parameters(self, parameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """The row of this run in the table of parameters, and its metrics, which are scalars too."""
        plain = {name: _cell(value) for name, value in parameters.items() if value is not None}
        for entry in summary.hparams(plain, dict(metrics)):
            self._add(entry, 0)
        for name, value in metrics.items():
            self.scalar(name, value, 0)

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def _add(self, entry: Summary, step: int) -> None:
        self._write(Event(summary=entry, step=step))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()


def _cell(value: object) -> float | str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, int | float | str) else str(value)
