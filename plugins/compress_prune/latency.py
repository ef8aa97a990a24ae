"""The time of a network without some channels, as a ratio to the dense network's, measured beside it.

    ratio = median over the rounds of  time(without the channels) / time(dense)

Both run in one process, in the runtime and with the batch for which the network is made, by turns, so that what
disturbs one disturbs the other. Source: David and Nagaraja 2003, Order statistics, sec. 7.1 (see compress_core.timing).
Cost: about a second per measurement, and the export where the runtime is not torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_core.timing import measure
from compress_prune.targets import naming, without

if TYPE_CHECKING:
    from compress_core.channels.coupling import Group
    from compress_core.parts import Exporter
    from compress_core.run import Example, Run

TORCH = "torch"
"""The runtime that needs no export."""
SECONDS = 0.6
"""What one attempt of a measurement may take."""

Call = Callable[[], Any]
Opened = Callable[[nn.Module, "Example"], Call]
"""Makes a call without arguments of a network and its example."""


def opened(exporter: Exporter | None) -> Opened:
    """How a network is run: in the exporter's runtime, or in torch without one."""

    def call(model: nn.Module, example: Example) -> Call:
        arguments, keywords = example
        if exporter is None:
            return lambda: _quietly(model, arguments, keywords)
        with tempfile.TemporaryDirectory() as folder:
            exporter.export(model, Path(folder), example)
            runtime = exporter.load(Path(folder), torch.get_num_threads())
            runtime(*arguments, **keywords)  # whatever it reads lazily is read while the folder is there
        return lambda: runtime(*arguments, **keywords)

    return call


class Stopwatch:
    """Called with masks of channels, the ratio of the time without them to the dense network's time."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], runtime: Opened, batch: int, run: Run) -> None:
        """Open the dense network in the runtime.

        Args:
            model: the network; it stays as it is.
            groups: its channels.
            runtime: runs it.
            batch: examples per call.
            run: gives the examples.
        """
        self.model, self.groups, self.runtime = model, tuple(groups), runtime
        order = torch.arange(batch) % len(run.splits.train)
        columns = run.splits.train.take(order)
        self.example = run.task.inputs({name: column.to(run.device) for name, column in columns.items()})
        self.dense = runtime(deepcopy(model).eval(), self.example)

    def __call__(self, gone: Sequence[Tensor]) -> float:
        """Measure."""
        network = without(self.model, self.groups, gone).eval()
        with naming(self.groups):
            cut = self.runtime(network, self.example)
            found = measure({"dense": self.dense, "cut": cut}, ["dense"], seconds=SECONDS)
        return 1 / found.speedup("cut", "dense").value


@torch.no_grad()
def _quietly(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return model(*arguments, **keywords)
