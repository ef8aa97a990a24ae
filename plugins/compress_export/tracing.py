"""From a torch network to a program with free axes: the batch, and others on request.

The network is traced by torch.export. What it takes and gives is written down with the program: the names, number
formats and shapes of the tensors, and how they hang together in the arguments and in the output.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.errors import ModelError
from compress_core.modes import evaluating, unfused
from compress_export.signature import (
    Signature,
    bind,
    flatten,
    input_names,
    output_names,
    parameter_names,
    positional_names,
    refill,
)

BATCH = "batch"
FEWEST_ROWS = 2
"""Rows of the batch with which a network is traced: an axis of one would be taken for a constant."""
_COLORS = re.compile(r"\x1b\[[0-9;]*m")

Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Traced:
    """A program, and how it is called."""

    program: torch.export.ExportedProgram
    signature: Signature


class Flat(nn.Module):
    """A network that takes its tensors, and gives them, in a row."""

    def __init__(self, network: nn.Module, example: Example) -> None:
        super().__init__()
        self.network = network
        self.parameter_names = parameter_names(network)
        self.positional = positional_names(self.parameter_names, len(example[0]))
        self.keywords = list(example[1])
        self.named = bind(self.parameter_names, *example)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the output, for the tensors of the arguments in the order of their names."""
        values = refill(self.named, iter(tensors))
        arguments = [values.get(name) for name in self.positional]
        keywords = {name: values.get(name) for name in self.keywords}
        found: list[Tensor] = []
        flatten(self.network(*arguments, **keywords), found, "the output")
        return tuple(found)


def trace(model: nn.Module, example: Example, free: Sequence[int] = ()) -> Traced:
    """The program of a network on the CPU, for any size of the batch.

    Args:
        model: the network.
        example: the forward's arguments; the first axis of each tensor is the batch.
        free: further axes that may have any size, in every input that has them.

    Raises:
        ModelError: it cannot be traced, or no input has one of these axes.
    """
    example = resized(example, FEWEST_ROWS)
    flat = Flat(model, example)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    into = flatten(flat.named, inputs, "the input")
    _refuse_missing(inputs, free)
    with evaluating(model), unfused(), torch.no_grad(), quiet():
        out = flatten(_call(model, example), outputs, "the output")
        program = _program(flat, inputs, free)
    symbols = _symbols(program, free)
    takes, gives = (_described(names, tensors, symbols) for names, tensors in _tensors(program, into, out))
    limits = {
        symbols[str(symbol)]: int(bounds.upper)
        for symbol, bounds in program.range_constraints.items()
        if str(symbol) in symbols and bounds.upper.is_Integer and int(bounds.upper) < torch.iinfo(torch.int32).max
    }
    return Traced(program, Signature(flat.parameter_names, into, out, takes, gives, limits))


def axis_name(axis: int) -> str:
    """What a free axis is called."""
    return BATCH if axis == 0 else f"axis_{axis}"


def _refuse_missing(inputs: Sequence[Tensor], free: Sequence[int]) -> None:
    deepest = max((tensor.ndim for tensor in inputs), default=0)
    for axis in free:
        if axis >= deepest:
            raise ModelError(
                f"no input has an axis {axis}: they have at most {deepest}",
                where="dynamic",
                mend="count axes from 0, the batch; 1 is that of the words in (examples, words)",
            )


def _symbols(program: torch.export.ExportedProgram, free: Sequence[int]) -> dict[str, str]:
    """The program's own names of free sizes, and what they are called."""
    found: dict[str, str] = {}
    for tensor in _user_inputs(program):
        for axis in (0, *free):
            if axis < tensor.ndim and isinstance(size := tensor.shape[axis], torch.SymInt):
                found.setdefault(str(size.node.expr), axis_name(axis))
    return found


def _user_inputs(program: torch.export.ExportedProgram) -> list[Tensor]:
    wanted = set(program.graph_signature.user_inputs)
    return [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]


def _tensors(program: torch.export.ExportedProgram, into: Any, out: Any) -> Iterator[tuple[list[str], list[Any]]]:
    yield input_names(into), _user_inputs(program)
    nodes = {node.name: node for node in program.graph.nodes}
    yield output_names(out), [nodes[str(name)].meta["val"] for name in program.graph_signature.user_outputs]


def _described(names: Sequence[str], tensors: Sequence[Tensor], symbols: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [renamed(str(size), symbols) if isinstance(size, torch.SymInt) else size for size in tensor.shape],
        }
        for name, tensor in zip(names, tensors, strict=True)
    ]


def renamed(size: str, symbols: dict[str, str]) -> str:
    """A size with other names for its symbols."""
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda found: symbols.get(found[0], found[0]), size)


def resized(value: Any, rows: int, free: Sequence[int] = (), share: float = 1.0) -> Any:
    """Arguments with that many rows of the batch, repeated from the first, and that share of every free axis."""
    tensors: list[Tensor] = []
    flatten(value, tensors, "the input")

    def cut(tensor: Tensor) -> Tensor:
        tensor = tensor[torch.arange(rows) % len(tensor)]
        for axis in free:
            if axis < tensor.ndim:
                tensor = tensor.narrow(axis, 0, ceil(share * tensor.shape[axis]))
        return tensor.contiguous()

    return refill(value, iter([cut(tensor) for tensor in tensors]))


def on_cpu(model: nn.Module, example: Example) -> tuple[nn.Module, Example]:
    """The network and its arguments on the CPU; the network itself if it is there already."""
    tensors: list[Tensor] = []
    flatten(example, tensors, "the input")
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        model = deepcopy(model).cpu()
    moved: Example = refill(example, iter([tensor.cpu() for tensor in tensors]))
    return model, moved


def _call(model: nn.Module, example: Example) -> Any:
    try:
        return model(*example[0], **example[1])
    except Exception as error:
        raise ModelError(
            f"the network does not run on its example: {reason(error)}", mend="check that the data fit its forward"
        ) from error


def _program(flat: Flat, inputs: Sequence[Tensor], free: Sequence[int]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim(BATCH)
    sizes = tuple(
        {0: batch, **{axis: torch.export.Dim.DYNAMIC for axis in free if axis < tensor.ndim}} for tensor in inputs
    )
    try:
        return torch.export.export(flat, tuple(inputs), dynamic_shapes=(sizes,))
    except Exception as error:
        why = reason(error)
        mend = "replace what depends on the values of tensors (`if`, `.item()`) by torch.where or masks"
        if "pecialized" in str(error):
            one = "the batch" if BATCH in str(error) else "an axis of `dynamic`"
            why = f"its forward works for one size of {one} only"
            mend = f"take the size of {one} from the input's shape, never as a number"
        raise ModelError(f"torch.export cannot trace the network: {why}", mend=mend) from error


def reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line.strip() for line in _COLORS.sub("", str(error)).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of the exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
