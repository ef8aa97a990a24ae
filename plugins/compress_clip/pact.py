"""`pact`: rectifiers get an upper bound, which is learned while the network trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compress_core.parts import Change, TrainingTechnique
from compress_core.selecting import matching

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.data import Batch
    from compress_core.run import Run


class Pact(TrainingTechnique):
    """Give every rectifier an upper bound, y = clamp(x, 0, alpha), and learn alpha with the network (PACT).

    The first alpha is a percentile of what the rectifier gives for calibration examples. In a step that trains,
    the loss pulls it up where it cuts off too much, and the regularizer pulls it down; without epochs it stays. With
    `quantize` in the same step, or after it, the integers of an activation lie within the bound. Rectifiers are the
    modules `nn.ReLU` and `nn.ReLU6`, and those of torch's transformer layers; one that is called in several places has
    one bound.
    """

    name = "pact"
    example: ClassVar[dict[str, Any]] = {"percentile": 99.9}

    percentile: float = Field(default=99.9, ge=50, le=100)
    """The share of a rectifier's values above 0, in per cent, that its first bound holds."""
    l2: float = Field(default=1e-4, ge=0)
    """Weight of the bounds' squares in the loss: (l2 / 2) * sum of alpha^2."""
    skip: tuple[str, ...] = ()
    """Paths of modules whose rectifiers stay as they are; `*` stands for anything, as in `encoder.*`."""

    @property
    def changes(self) -> frozenset[Change]:
        """The rectifiers are other modules."""
        return frozenset({Change.ARCHITECTURE})

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Bound the rectifiers, in place; those that are bounded already keep their bounds.

        Raises:
            ModelError: a pattern in `skip` matches no module.
        """
        from compress_clip.bounded import BoundedReLU, replace_modules, show_rectifiers
        from compress_core.modes import leave_fused_paths

        skipped = {id(module) for module in matching(model, self.skip).values()}
        show_rectifiers(model, skipped)
        rectifiers = {path: module for path, module in _rectifiers(model).items() if id(module) not in skipped}
        model.to(run.device)
        bounds = _calibrated(model, rectifiers, self.percentile, run)
        if lost := [path for path in rectifiers if path not in bounds]:
            run.say(f"pact: left as they are: {', '.join(lost)} (the calibration examples do not reach them)")
        new: dict[int, nn.Module] = {}
        for path, bound in bounds.items():
            old = rectifiers[path]
            inplace = bool(getattr(old, "inplace", False))
            new[id(old)] = BoundedReLU(bound, inplace).train(old.training).to(run.device)
        replace_modules(model, new)
        everywhere = model.named_modules(remove_duplicate=False)
        leave_fused_paths(model, {path for path, module in everywhere if isinstance(module, BoundedReLU)})
        return model

    def begin(self, model: nn.Module, run: Run) -> nn.Module:
        """Remember the bounds at first, for what is said in the end."""
        return _first(model)

    def loss(self, batch: Batch, output: Any, model: nn.Module, state: nn.Module | None, run: Run) -> Tensor | None:
        """The regularizer of the bounds."""
        from compress_clip.bounded import bounded, l2_of_bounds

        found = bounded(model)
        return l2_of_bounds(found.values(), self.l2) if self.l2 and found else None

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Keep the bounds positive."""
        from compress_clip.bounded import LEAST, bounded

        for module in bounded(model).values():
            module.bound.detach().clamp_(min=LEAST)

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Say what the bounds have become."""
        from compress_clip.bounded import bounded

        found = bounded(model)
        if not found:
            run.say("pact: no module such as nn.ReLU is called by the network and not in `skip`: nothing changed")
            return model
        now = _span([module.bound.item() for module in found.values()])
        before = _span([value.item() for value in state.buffers()] if state is not None else [])
        run.say(f"pact: {_counted(len(found))} bounded at {now}; {before} at first")
        return model


def _rectifiers(model: nn.Module) -> dict[str, nn.Module]:
    """The rectifiers without a learned bound by path, each once."""
    from torch import nn

    return {path: module for path, module in model.named_modules() if type(module) in {nn.ReLU, nn.ReLU6}}


def _calibrated(model: nn.Module, rectifiers: Mapping[str, nn.Module], percentile: float, run: Run) -> dict[str, float]:
    """For each rectifier that is reached, the mean over batches of the percentile of what it lets through.

    One that lets nothing through gets the bound of a ReLU6.
    """
    import torch

    from compress_core.modes import evaluating, unfused

    seen: dict[str, list[float]] = {}

    def watch(path: str, output: Tensor) -> None:
        passed = output.detach()[output > 0].float()
        values = seen.setdefault(path, [])
        if len(passed):
            values.append(float(passed.kthvalue(max(1, round(len(passed) * percentile / 100))).values))

    handles = [
        module.register_forward_hook(lambda module, inputs, output, path=path: watch(path, output))
        for path, module in rectifiers.items()
    ]
    try:
        with torch.no_grad(), evaluating(model), unfused():
            for batch in run.calibration() if handles else ():
                run.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {path: sum(values) / len(values) if values else 6.0 for path, values in seen.items()}


def _first(model: nn.Module) -> nn.Module:
    from torch import nn

    from compress_clip.bounded import bounded

    state = nn.Module()
    for index, module in enumerate(bounded(model).values()):
        state.register_buffer(f"bound{index}", module.bound.detach().clone())
    return state


def _counted(rectifiers: int) -> str:
    return "1 rectifier is" if rectifiers == 1 else f"{rectifiers} rectifiers are"


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
