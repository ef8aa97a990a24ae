"""Exported networks side by side: who is right on which example, and how fast each is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from compress_core.data import Splits
    from compress_core.parts import Task
    from compress_core.timing import Timing

Call = Callable[..., Any]


def right(call: Call, splits: Splits, task: Task, batch: int = 100) -> Tensor:
    """1 for each test example that is classified rightly, else 0."""
    from compress_core.data import batches

    found = []
    for examples in batches(splits.test, batch):
        arguments, keywords = task.inputs(examples)
        found.append(task.logits(call(*arguments, **keywords)).argmax(1) == task.target(examples))
    return torch.cat(found).double()


def difference(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """In points: the mean of the paired differences and its 95 % interval."""
    gap = 100 * (one - other)
    mean, spread = float(gap.mean()), 1.96 * float(gap.std()) / len(gap) ** 0.5
    return mean, mean - spread, mean + spread


def timed(calls: Mapping[str, Call], splits: Splits, task: Task, batch: int, opponents: list[str]) -> Timing:
    """The networks by turns, on the first test examples."""
    from compress_core.timing import measure

    arguments, keywords = task.inputs(splits.test.take(torch.arange(batch)))
    arguments = tuple(value.contiguous() for value in arguments)
    runs = {name: (lambda call=call: call(*arguments, **keywords)) for name, call in calls.items()}
    return measure(runs, opponents, seconds=12.0)


def onnxruntime_static(path: Path, inputs: list[dict[str, np.ndarray]], out: Path) -> None:
    """The static quantizer of onnxruntime itself: per channel, uint8 activations and int8 weights, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def onnxruntime_dynamic(path: Path, out: Path) -> None:
    """The dynamic quantizer of onnxruntime itself: prepared, per channel, int8 weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, out, per_channel=True, weight_type=QuantType.QInt8)


def nncf_static(path: Path, inputs: list[Any], folder: Path) -> None:
    """NNCF's post-training quantizer for OpenVINO with its defaults, as files that `OpenVino` opens.

    The signature of the file that it starts from is kept, so that both are called alike.
    """
    import nncf
    import openvino

    with silent():
        model = openvino.Core().read_model(path)
        found = nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs))
    folder.mkdir(parents=True, exist_ok=True)
    found.set_rt_info(str(model.get_rt_info(["compress"]).value), ["compress"])
    openvino.save_model(found, folder / "model.xml", compress_to_fp16=False)


@contextmanager
def silent() -> Iterator[None]:
    """Without the progress bars of a library."""
    import contextlib
    import io
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
