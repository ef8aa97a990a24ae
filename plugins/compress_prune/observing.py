"""What criteria observe: gradients while a network trains or on calibration batches, and the inputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress_core.errors import ModelError, PluginError
from compress_core.modes import evaluating
from compress_core.weights import weights
from compress_prune.scoring import at_least_single, by_channel

if TYPE_CHECKING:
    from compress_core.parts import Criterion
    from compress_core.run import Run

MOMENTUM = 0.9
"""How much of a running mean stays at each observation; Molchanov et al. 2019, sec. 4.1."""
SLOW = 0.999
"""The same for a mean that forgets as slowly as the second moment of Adam; Kingma & Ba 2015, algorithm 1."""


def _zeros(weight: Tensor) -> Tensor:
    return at_least_single(torch.zeros_like(weight))


class PerWeight(nn.Module):
    """A number for every entry of every weight of a network: a sum over what is observed, in float32 at least."""

    def __init__(self, model: nn.Module, first: Callable[[Tensor], Tensor] = _zeros) -> None:
        """Begin with `first(weight)` for each weight, of its shape."""
        super().__init__()
        places = weights(model)
        for index, place in enumerate(places):
            self.register_buffer(f"of_{index}", first(place.parameter.detach()))
        known = {id(place.parameter): f"of_{index}" for index, place in enumerate(places)}
        parameters = model.named_parameters(remove_duplicate=False)
        self.index = {name: known[id(parameter)] for name, parameter in parameters if id(parameter) in known}
        self.names = [place.name for place in places]

    def of(self, name: str) -> Tensor:
        """The numbers of the weight of that name."""
        return self.get_buffer(self.index[name])

    @torch.no_grad()
    def add(self, model: nn.Module, term: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take `term(weight, gradient)` in, for every weight that has a gradient."""
        for name in self.names:
            weight = model.get_parameter(name)
            if (gradient := gradient_of(weight)) is not None:
                self.take(self.of(name), term(weight, at_least_single(gradient)))

    def take(self, seen: Tensor, term: Tensor) -> None:
        """Put a term into what was seen, in place."""
        seen.add_(term)


class Means(PerWeight):
    """Running means over the observations, without the bias of their beginning."""

    count: Tensor

    def __init__(self, model: nn.Module, momentum: float = MOMENTUM) -> None:
        super().__init__(model)
        self.rate, self.momentum = 1.0, momentum
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def add(self, model: nn.Module, term: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take `term(weight, gradient)` in, for every weight that has a gradient."""
        self.count += 1
        self.rate = max(1 - self.momentum, 1 / int(self.count))
        super().add(model, term)

    def take(self, seen: Tensor, term: Tensor) -> None:
        """Move the mean towards the term: at first a plain mean, a running one as soon as that forgets no faster."""
        seen.lerp_(term, self.rate)


class Inputs(nn.Module):
    """A figure for each channel that a convolution or a linear layer reads, over the calibration batches.

    It is 1 for layers that never run by themselves, such as the last projection of torch's attention.
    """

    def __init__(self, model: nn.Module, statistic: str) -> None:
        super().__init__()
        self.statistic = statistic
        self.layers = {path: f"of_{index}" for index, (path, _) in enumerate(_layers(model))}
        self.transposed = {path for path, layer in _layers(model) if isinstance(layer, _ConvNd) and layer.transposed}
        for path, layer in _layers(model):
            size = layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features
            self.register_buffer(self.layers[path], torch.zeros(size, device=layer.weight.device))

    def of(self, path: str) -> Tensor | None:
        """The figures of the layer at a path; None if it is no such layer."""
        return self.get_buffer(self.layers[path]) if path in self.layers else None

    def factor(self, name: str, weight: Tensor) -> Tensor:
        """The figures of the inputs of a weight, of a shape that multiplies it."""
        path, _, tensor = name.rpartition(".")
        found = self.of(path)
        if found is None or tensor != "weight":
            return torch.ones((), device=weight.device)
        ones = [1] * (weight.ndim - 2)
        if path in self.transposed:
            return found.reshape(-1, 1, *ones)
        groups = found.numel() // weight.shape[1]
        by_row = found.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
        return by_row.reshape(*weight.shape[:2], *ones)

    @torch.no_grad()
    def measure(self, model: nn.Module, run: Run) -> None:
        """Watch the inputs of all layers on the calibration batches."""
        totals = {path: torch.zeros_like(self.get_buffer(name)) for path, name in self.layers.items()}
        counts = dict.fromkeys(self.layers, 0)

        def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def hook(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                values = by_channel(arguments[0] if arguments else keywords["input"], layer)
                totals[path] += _summed(at_least_single(values), self.statistic)
                counts[path] += values.shape[1]

            return hook

        handles = [
            model.get_submodule(path).register_forward_pre_hook(watch(path), with_kwargs=True) for path in self.layers
        ]
        try:
            with evaluating(model):
                for batch in run.calibration():
                    run.forward(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        for path, name in self.layers.items():
            mean = totals[path] / counts[path] if counts[path] else torch.ones_like(totals[path])
            self.get_buffer(name).copy_(mean.sqrt() if self.statistic == "norm" else mean)


class Scorer(nn.Module):
    """A criterion with what it has observed in one network."""

    def __init__(self, criterion: Criterion, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.criterion, self.observed = criterion, False
        self.seen = criterion.begin(model, run)

    def observe(self, model: nn.Module) -> None:
        """Note the gradients of one backward pass, if the criterion wants any and they are numbers.

        In float16 the loss is scaled up until gradients overflow; the update is then left out too.
        """
        if self.criterion.needs_gradients and finite(model.parameters()):
            self.criterion.observe(model, self.seen)
            self.observed = True

    def read(self, model: nn.Module, run: Run) -> None:
        """Make everything ready for scores: gradients that no training has given, and what calibration shows.

        Raises:
            ModelError: no gradients are numbers.
        """
        if self.criterion.needs_gradients and not self.observed:
            for _ in backward_passes(model, run):
                self.observe(model)
            if not self.observed:
                raise ModelError(
                    f"the criterion {self.criterion.name!r} sees no numbers in the gradients on calibration batches",
                    mend="check the loss and the data for NaN, or use a criterion that needs no gradients",
                )
        self.criterion.measure(model, self.seen, run)

    def weight_scores(self, name: str, weight: Tensor) -> Tensor | None:
        """The score of each entry of a weight, in its shape.

        Raises:
            PluginError: the criterion gives scores of another shape.
        """
        return self._fitting(self.criterion.weight_scores(name, weight, self.seen), weight.shape, name)

    def channel_scores(self, model: nn.Module, path: str, side: str, size: int) -> Tensor | None:
        """The score of each of the `size` channels of a layer.

        Raises:
            PluginError: the criterion gives another number of scores.
        """
        return self._fitting(self.criterion.channel_scores(model, path, side, self.seen), torch.Size([size]), path)

    def _fitting(self, scores: Tensor | None, shape: torch.Size, name: str) -> Tensor | None:
        if scores is None:
            return None
        if scores.shape != shape:
            raise PluginError(
                f"the criterion {self.criterion.name!r} gives scores of shape {tuple(scores.shape)} "
                f"for {name}, which has {tuple(shape)}",
                mend="use another criterion, or tell its author",
            )
        return at_least_single(scores.detach())


def backward_passes(model: nn.Module, run: Run) -> Any:
    """Backward passes of the task's loss over the calibration batches, in eval mode; each yields, gradients in place.

    Gradients that were there before, and which parameters are frozen, are as before at the end. cuDNN is off: it
    refuses to go backward through a recurrent layer in eval mode.
    """
    before = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with evaluating(model), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            for parameter, _, _ in before:
                parameter.requires_grad_(parameter.is_floating_point())
            for batch in run.calibration():
                for parameter, _, _ in before:
                    parameter.grad = None
                torch.autograd.backward(run.task.loss(run.forward(model, batch), batch))
                yield
    finally:
        for parameter, gradient, wanted in before:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


def gradient_of(weight: Tensor) -> Tensor | None:
    """The gradient of a weight if it has one, dense."""
    return weight.grad.to_dense() if weight.grad is not None and weight.grad.is_sparse else weight.grad


def finite(parameters: Iterable[Tensor]) -> bool:
    """Whether all gradients are numbers, and there are any: by their sums, looked at together."""
    found = [gradient.sum(dtype=torch.float32) for one in parameters if (gradient := gradient_of(one)) is not None]
    return bool(found) and bool(torch.stack([total.to(found[0].device) for total in found]).isfinite().all())


def is_layer(module: nn.Module) -> TypeGuard[_ConvNd | nn.Linear]:
    """Whether it is a convolution or a linear layer."""
    return isinstance(module, _ConvNd | nn.Linear)


def means(state: nn.Module | None) -> PerWeight:
    """The state of a criterion that keeps a number for every weight."""
    assert isinstance(state, PerWeight)
    return state


def inputs(state: nn.Module | None) -> Inputs:
    """The state of a criterion that watches the inputs of layers."""
    assert isinstance(state, Inputs)
    return state


def _layers(model: nn.Module) -> list[tuple[str, _ConvNd | nn.Linear]]:
    return [(path, module) for path, module in model.named_modules() if is_layer(module)]


def _summed(values: Tensor, statistic: str) -> Tensor:
    match statistic:
        case "magnitude":
            return values.abs().sum(1)
        case "alive":
            return (values > 0).to(values.dtype).sum(1)
        case _:
            return values.square().sum(1)
