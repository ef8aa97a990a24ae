"""What every task with a label shares: which columns go in, which part of the output is judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress_core.errors import DataError, ModelError
from compress_core.parts import Task

if TYPE_CHECKING:
    from torch import Tensor

    from compress_core.data import Batch


class Supervised(Task):
    """A network that learns one column of the data from the others."""

    input: str | tuple[str, ...] | None = None
    """The column that goes into the network, or several in the order of its forward; unless given, every column
    but the label, in the order of their names."""
    passing: Literal["positional", "keyword", "dictionary"] = "positional"
    """How the columns go in: one after the other, as keyword arguments of their names, or as one dictionary."""
    label: str = Field(default="label", min_length=1)
    """The column that is learned."""
    output: str | int | None = None
    """The part of the network's output that is judged, by name or place; unless given, the tensor itself, or what is
    called `logits`, or the first part."""

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the network's forward.

        Raises:
            DataError: a column is missing, or there is none but the label.
        """
        columns = {name: column_of(batch, name) for name in self._inputs_of(batch)}
        match self.passing:
            case "positional":
                return tuple(columns.values()), {}
            case "keyword":
                return (), columns
            case "dictionary":
                return (columns,), {}

    def logits(self, output: object) -> Tensor:
        """The tensor in the output that is learned from and judged.

        Raises:
            ModelError: there is none at the place given or looked for.
        """
        return judged_part(output, self.output)

    def target(self, batch: Batch) -> Tensor:
        """The label."""
        return column_of(batch, self.label)

    def _inputs_of(self, batch: Batch) -> tuple[str, ...]:
        if isinstance(self.input, str):
            return (self.input,)
        names = tuple(sorted(set(batch) - {self.label})) if self.input is None else self.input
        if not names:
            raise DataError("no column goes into the network", mend=f"add one to the data beside {self.label!r}")
        return names


def column_of(batch: Batch, name: str) -> Tensor:
    """A column of a batch.

    Raises:
        DataError: there is no such column.
    """
    if name not in batch:
        raise DataError(f"the data have no column {name!r}", mend=f"columns: {', '.join(sorted(batch))}")
    return batch[name]


def judged_part(output: object, place: str | int | None) -> Tensor:
    """The tensor at `place` in a network's output: a name or an index; found by itself if None.

    Raises:
        ModelError: there is no tensor.
    """
    from torch import Tensor

    found = _at(output, place) if place is not None else _found(output)
    if not isinstance(found, Tensor):
        said = "its output" if place is None else f"{place!r} of its output"
        raise ModelError(
            f"the network gives no tensor to judge: {said} is {type(found).__name__}",
            where="task.output",
            mend=f"name the part of the output that is judged: {_parts(output)}",
        )
    return found


def _found(output: object) -> object:
    from torch import Tensor

    match output:
        case Tensor():
            return output
        case Mapping():
            return output["logits"] if "logits" in output else next(iter(output.values()), None)
        case tuple() | list() if not hasattr(output, "logits"):
            return output[0] if output else None
        case _:
            return getattr(output, "logits", output)


def _at(output: object, place: str | int) -> object:
    try:
        if isinstance(place, str) and not isinstance(output, Mapping):
            return getattr(output, place)
        if isinstance(place, int) and isinstance(output, Mapping):
            return list(output.values())[place]
        return output[place]  # type: ignore[index]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ModelError(
            f"the network's output, {type(output).__name__}, has no part {place!r}",
            where="task.output",
            mend=f"parts: {_parts(output)}",
        ) from error


def _parts(output: object) -> str:
    match output:
        case Mapping():
            names = [repr(name) for name in output]
        case tuple() | list():
            names = [str(index) for index in range(len(output))]
        case _:
            names = [repr(name) for name in vars(output)] if hasattr(output, "__dict__") else []
    return ", ".join(names) or "it has none"
