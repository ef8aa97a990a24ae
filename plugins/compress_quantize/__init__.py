"""Quantization: layers that hold integers of few bits and compute with them, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from compress_core import hookimpl
from compress_core.parts import Change, Technique, TrainingPlan, TrainingTechnique
from compress_core.selecting import matching

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run
    from compress_quantize.converting import Report
    from compress_quantize.widths import Numbers


LEAST_BITS, MOST_BITS = 2, 8
OUTLIERS = 99.99
"""The percentile of the observer of that name, unless one is given."""


class Quantize(TrainingTechnique):
    """Hold weights as integers and compute with activations of 8 bits or fewer: x' = scale * (q - zero_point).

    Linear layers, the projections of torch's attention and convolutions over one to three axes become integers, with
    one scale per output channel and the BatchNorm behind them folded in; every value that one of them reads or
    writes, sums of residual branches included, gets a scale and a zero point. Embeddings, transposed convolutions and
    recurrent layers hold 8-bit weights and compute in real numbers. Alone, it calibrates on some training batches
    (post-training quantization). In a step that trains, the network learns with the rounding (quantization-aware
    training).
    The file gets four times smaller; the speed comes with an exported format whose runtime has integer kernels.
    """

    name = "quantize"
    example: ClassVar[Mapping[str, Any]] = {"bits": 8}

    bits: int = 8
    """Width of the weights' integers, from 2 to 8. Those of 4 bits and fewer are stored two or four to a byte; every
    runtime computes with 8."""
    activation_bits: int = 8
    """Width of what layers read, from 2 to 8. What sums of residual branches read and write keeps 8."""
    outer_bits: int = 8
    """Width of the first and the last layer's weights, and of what these two read, from 2 to 8."""
    learned: bool = False
    """Whether training learns the steps between the levels of every grid with the weights (LSQ); else they follow the
    ranges of weights and activations."""
    freeze_norms: float | None = Field(default=None, ge=0, lt=1)
    """Share of the training after which BatchNorms compute with their running statistics, which then stay; never
    unless given."""
    observer: Literal["minmax", "moving-average", "percentile", "mse", "entropy"] = "minmax"
    """How the range of an edge is found: the smallest and largest value, a moving average of the batches', the
    batches' percentiles, the least squared error, or the least Kullback-Leibler divergence (as TensorRT does). A
    training follows a moving average of each batch's range, whichever it is."""
    percentile: float | None = Field(default=None, ge=90, le=100)
    """Share of a batch's values, in per cent, that the range of an edge holds at either end, for the observer
    `percentile`; what lies beyond is cut off. 99.99 unless given."""
    granularity: Literal["channel", "tensor"] = "channel"
    """Whether each output channel of a weight has a scale of its own, or the tensor one; for `tensor`, BatchNorms are
    folded before anything else. A training folds them at its end, and channels get scales of their own again."""
    weight_range: Literal["max", "mse"] = "max"
    """Whether a weight's scale holds its whole range or makes the least squared error."""
    equalize: bool = False
    """Whether channels between two layers get the same range in both before anything is rounded, where the network
    computes the same then. Without training only, as the next two."""
    rounding: Literal["nearest", "adaptive"] = "nearest"
    """Whether each weight becomes the nearest integer or goes up or down so that its layer gives what it gave
    (AdaRound, layer by layer)."""
    steps: int = Field(default=1000, ge=1)
    """Steps of adaptive rounding for each layer."""
    correct_bias: bool = False
    """Whether biases take back what rounding has moved in the mean of each output channel, layer by layer."""
    delay: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training after which activations are rounded too; before, only their ranges are followed.
    The best epoch is chosen after it. Weights are rounded from the start."""
    skip: tuple[str, ...] = ()
    """Paths of modules that stay real, with all they hold; `*` stands for anything, as in `encoder.*`."""

    @field_validator("bits", "activation_bits", "outer_bits")
    @classmethod
    def _some_runtime_has_them(cls, bits: int) -> int:
        if not LEAST_BITS <= bits <= MOST_BITS:
            raise ValueError(
                f"no runtime computes with integers of {bits} bits: weights and activations have "
                f"{LEAST_BITS} to {MOST_BITS}, of which onnxruntime and OpenVINO have kernels for 8 and the others are "
                "computed as 8"
            )
        return bits

    @model_validator(mode="after")
    def _percentile_has_its_observer(self) -> Quantize:
        if self.percentile is not None and self.observer != "percentile":
            raise ValueError(f"`percentile` belongs to `observer: percentile`, not to `observer: {self.observer}`")
        return self

    @property
    def needs_epochs(self) -> bool:  # type: ignore[override]
        """Whether only a training does what these parameters ask for."""
        return self.learned or self.freeze_norms is not None

    @property
    def changes(self) -> frozenset[Change]:
        """The format of the numbers."""
        return frozenset({Change.NUMBERS})

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Choose no epoch before activations are rounded."""
        return replace(plan, select_from=max(plan.select_from, self.delay))

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Put quantizers into the network, in place.

        Raises:
            ModelError: a pattern in `skip` matches no module, or a container needs more than its forward.
        """
        from compress_quantize.converting import make_quantizable

        arguments, keywords = run.example
        forward = partial(model.to(run.device), *arguments, **keywords)
        skipped = set(matching(model, self.skip))
        report = make_quantizable(model, forward, skipped, self._numbers())
        for line in _explained(report):
            run.say(f"quantize: {line}")
        return model

    def _numbers(self) -> Numbers:
        from compress_quantize.observing import Observing
        from compress_quantize.weight_grids import WeightGrid
        from compress_quantize.widths import Numbers, Widths

        return Numbers(
            Observing(self.observer, self.percentile or OUTLIERS),
            WeightGrid(per_tensor=self.granularity == "tensor", least_error=self.weight_range == "mse"),
            Widths(self.bits, self.activation_bits, self.outer_bits),
            self.learned,
        )

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """Return what holds on to frozen BatchNorms."""
        from compress_quantize.freezing import Frozen

        return Frozen()

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Start to round activations when the delay is over, and freeze BatchNorms when it is time."""
        from compress_quantize.converting import quantizers
        from compress_quantize.freezing import Frozen
        from compress_quantize.learned_step import LearnedStep

        for module in model.modules():
            if isinstance(module, LearnedStep):
                module.stay_positive()
        if progress >= self.delay:
            for quantizer in quantizers(model).values():
                quantizer.activate()
        if self.freeze_norms is not None and progress >= self.freeze_norms and isinstance(state, Frozen):
            state.freeze(model)

    def abandon(self, model: nn.Module, state: nn.Module | None, run: Run) -> None:
        """Let BatchNorms go again."""
        from compress_quantize.freezing import Frozen

        if isinstance(state, Frozen):
            state.release()

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Calibrate unless the training has, fold BatchNorm and hold the integers.

        Raises:
            ModelError: the values on an edge are not finite.
        """
        from compress_quantize.converting import quantizers
        from compress_quantize.finishing import hold_integers, hold_weights

        self.abandon(model, state, run)
        edges = len(quantizers(model))
        folded = self._calibrate(model, run) if edges else 0
        model, held = hold_weights(model)
        if held:
            run.say(f"quantize: {held} layers hold 8-bit integers and compute in real numbers")
        if not edges:
            if not held:
                run.say("quantize: the network has no layer that can be quantized: nothing changed")
            return model
        model, layers, norms = hold_integers(model)
        run.say(
            f"quantize: {layers} layers hold {_widths(model)} integers, {norms + folded} BatchNorms are folded, "
            f"{edges} edges rounded"
        )
        if norms and self.granularity == "tensor":
            run.say(
                f"quantize: {norms} layers have a scale per channel: their BatchNorms were folded after the training"
            )
        return model

    def _calibrate(self, model: nn.Module, run: Run) -> int:
        """Find the ranges that no training has found, and refine; returns how many BatchNorms were folded."""
        from compress_quantize.after_training import Refinement, quantize_after_training
        from compress_quantize.converting import is_stale, quantizers

        refinement = Refinement(
            fold=self.granularity == "tensor",
            equalize=self.equalize,
            rounding_steps=self.steps if self.rounding == "adaptive" else 0,
            correct_bias=self.correct_bias,
        )
        if any(quantizer.observed for quantizer in quantizers(model).values()):
            if refinement.refines:
                run.say("quantize: the network has trained with rounding: not equalized, rounded or corrected after it")
            refinement = Refinement()
        if not is_stale(model):
            return 0
        forwards = [partial(run.forward, batch=batch) for batch in run.calibration()]
        folded, said = quantize_after_training(model, forwards, refinement, run.seed)
        for line in said:
            run.say(f"quantize: {line}")
        return folded


class Dequantize(Technique):
    """Turn layers of integers or codes into real ones again, so that the network can be trained, pruned or factorized.

    The weights are the numbers that these stand for. Integers that are quantized again untouched come out the same,
    unless their steps were learned. Rounding of activations goes; a folded BatchNorm stays folded.
    """

    name = "dequantize"
    reopens_numbers = True

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Replace the layers of integers."""
        from compress_quantize.finishing import hold_reals

        model, count = hold_reals(model)
        nothing = "the network has no layer of integers or codes: nothing changed"
        run.say(f"dequantize: {f'{count} layers are real again' if count else nothing}")
        return model


def _widths(model: nn.Module) -> str:
    """The widths of the kept layers' integers: `8-bit`, or how many layers have which."""
    from compress_quantize.layers import KEPT

    found = Counter(module.bits for module in model.modules() if isinstance(module, KEPT))
    if len(found) == 1:
        return f"{next(iter(found))}-bit"
    return " and ".join(f"{bits}-bit ({count})" for bits, count in sorted(found.items()))


def _explained(report: Report) -> list[str]:
    """What stays real and why, one line for each reason, and what computes in real numbers."""
    lines = []
    for kind in Counter(report.held.values()):
        paths = ", ".join(path or "the network itself" for path, held in report.held.items() if held == kind)
        lines.append(f"weights only, since no runtime has an integer kernel for {kind}: {paths}")
    for reason in Counter(report.left.values()):
        paths = ", ".join(path or "the network itself" for path, why in report.left.items() if why == reason)
        lines.append(f"left real: {paths} ({reason})")
    for reason in Counter(report.untraced.values()):
        paths = ", ".join(path or "the network itself" for path, why in report.untraced.items() if why == reason)
        lines.append(f"not traced, so only what its layers read is rounded: {paths} ({reason})")
    return lines


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Quantize, Dequantize]


@hookimpl
def register_modules() -> list[type[nn.Module]]:
    """The modules that a quantized network is made of."""
    from compress_quantize.graph import Graph
    from compress_quantize.layers import KEPT
    from compress_quantize.observers import Quantizer
    from compress_quantize.weight_only import WEIGHT_ONLY

    return [*KEPT, *WEIGHT_ONLY, Quantizer, Graph]
