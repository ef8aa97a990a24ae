"""The time of a changed network as a share of the time of the network that it was, measured beside it.

    share = median over the rounds of  time(changed) / time(dense)

Both run in one process, in the runtime and with the batch for which the network is made, by turns, so that what
disturbs one disturbs the other (see `timing`). Cost: about a second a measurement, and the export where the runtime is
not torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress_core.artifact import origins, trusting
from compress_core.catalog import catalog
from compress_core.timing import measure

if TYPE_CHECKING:
    from compress_core.parts import Exporter
    from compress_core.run import Run

TORCH = "torch"
"""The runtime that needs no export."""
SECONDS = 0.6
"""What one attempt of a measurement may take."""

Call = Callable[[], Any]


def exporter_of(runtime: str) -> Exporter | None:
    """The exporter behind a runtime's name; None for torch."""
    return None if runtime == TORCH else catalog().exporters[runtime]()


class Stopwatch:
    """Called with a network, the share of the dense network's time that a call of it takes."""

    def __init__(self, dense: nn.Module, exporter: Exporter | None, batch: int, run: Run) -> None:
        """Open the dense network.

        Args:
            dense: the network as it is; it stays so.
            exporter: the runtime; torch without one.
            batch: examples per call.
            run: gives the examples.
        """
        self.exporter = exporter
        columns = run.splits.train.take(torch.arange(batch) % len(run.splits.train))
        self.example = run.task.inputs({name: column.to(run.device) for name, column in columns.items()})
        self.dense = self.opened(deepcopy(dense))

    def __call__(self, network: nn.Module) -> float:
        """Measure."""
        found = measure({"dense": self.dense, "changed": self.opened(network)}, ["dense"], seconds=SECONDS)
        return 1 / found.speedup("changed", "dense").value

    def opened(self, network: nn.Module) -> Call:
        """A call of a network in the runtime, in eval mode."""
        network = network.eval()
        arguments, keywords = self.example
        if self.exporter is None:
            return lambda: _quietly(network, arguments, keywords)
        with tempfile.TemporaryDirectory() as folder:
            self.exporter.export(network, Path(folder), self.example)
            with trusting(origins(network)):
                runtime = self.exporter.load(Path(folder), torch.get_num_threads())
            runtime(*arguments, **keywords)  # whatever it reads lazily is read while the folder is there
        return lambda: runtime(*arguments, **keywords)


@torch.no_grad()
def _quietly(network: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return network(*arguments, **keywords)
