"""A tensor that is kept as codes, and gives its real numbers whenever it is asked.

Codes are packed. Only those of eight bits on a symmetric grid lie there as signed bytes, row by row, and are read by
the operation that exporters write as DequantizeLinear, so that runtimes with kernels for int8 weights know them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn

from compress_codes.coding import Coding, Rows, middle_of, valued
from compress_codes.packing import pack, packed_bytes, unpack

Form = Literal["symmetric", "asymmetric", "table"]
Shared = dict[int, tuple[Tensor, Tensor]]
"""By its id, a tensor beside the codes, which stays alive so that no other gets its id, and what is kept of it."""
BYTE = 8


class CodedTensor(nn.Module):
    """The codes of one weight.

    Args:
        shape: of the weight.
        bits: the width of a code.
        form: whether codes are numbers on a grid around zero, on one with zero points, or places in a table.
        rows: how many rows have a scale; 0 if there are none.
        levels: how many levels the table has.
        axis: on which the output channels of the weight lie.
    """

    def __init__(
        self, shape: tuple[int, ...], bits: int, form: Form, *, rows: int = 0, levels: int = 0, axis: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.bits, self.form, self.axis = tuple(shape), bits, form, axis
        self.rows, self.levels = rows, levels
        count = torch.Size(shape).numel()
        codes = (
            torch.zeros(rows, count // rows, dtype=torch.int8)
            if self._by_bytes
            else torch.zeros(packed_bytes(count, bits), dtype=torch.uint8)
        )
        self.register_buffer("codes", codes)
        self.register_buffer("scale", torch.ones(rows) if rows else None)
        self.register_buffer("zero", torch.zeros(rows, dtype=torch.uint8) if form == "asymmetric" else None)
        self.register_buffer("table", torch.zeros(levels) if levels else None)

    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    table: Tensor | None

    @property
    def _by_bytes(self) -> bool:
        return self.bits == BYTE and self.form == "symmetric"

    def forward(self) -> Tensor:
        """The real numbers, in the shape of the weight."""
        rows = Rows(self.shape, self.axis, max(self.rows, 1))
        if self._by_bytes:
            return rows.joined(self._dequantized())
        count = torch.Size(self.shape).numel()
        codes = unpack(self.codes, self.bits, count).reshape(rows.count, -1)
        return rows.joined(valued(codes, self.bits, self.scale, self.zero, self.table))

    def _dequantized(self) -> Tensor:
        """Zero points are zeros, and are given all the same: without them some runtimes know no int8 weights."""
        zero = torch.zeros(self.rows, dtype=torch.int8, device=self.codes.device)
        found: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scale, zero, 0, -128, 127, torch.int8
        )
        return found

    def stands_for(self) -> dict[str, Tensor]:
        """The real numbers, which the core counts in the place of the codes."""
        return {"codes": self()}

    def extras(self) -> list[Tensor]:
        """The tensors beside the codes."""
        return [part for part in (self.scale, self.zero, self.table) if part is not None]

    def twin(self) -> CodedTensor:
        """Another one with the same tensors, for a layer that shares the weight: they are saved once."""
        found = CodedTensor(**self.arguments())
        found._buffers = dict(self._buffers)
        return found

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        found: dict[str, Any] = {"shape": self.shape, "bits": self.bits, "form": self.form}
        return found | {name: getattr(self, name) for name in ("rows", "levels", "axis") if getattr(self, name)}

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())


@torch.no_grad()
def keep(coding: Coding, shared: Shared) -> CodedTensor:
    """The codes as they are kept.

    Args:
        coding: the codes.
        shared: what is kept already; a table that two weights share is kept once.
    """
    if coding.levels is not None:
        form: Form = "table"
    else:
        form = "symmetric" if coding.zero is None else "asymmetric"
    rows = coding.rows
    kept = CodedTensor(
        rows.shape,
        coding.bits,
        form,
        rows=0 if coding.scale is None else rows.count,
        levels=0 if coding.levels is None else len(coding.levels),
        axis=rows.axis,
    ).to(coding.codes.device)
    if kept.codes.ndim == 2:
        kept.codes.copy_(coding.codes.to(torch.int16) - middle_of(BYTE))
    else:
        kept.codes.copy_(pack(coding.codes.flatten(), coding.bits))
    for name, values in (("scale", coding.scale), ("zero", coding.zero), ("table", coding.levels)):
        if values is not None:
            kept._buffers[name] = shared.setdefault(id(values), (values, values.detach().clone()))[1]
    return kept
