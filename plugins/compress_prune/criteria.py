"""The built-in criteria: by what weights and channels are ranked. `scoring.py` has the equations and their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compress_core.parts import Criterion

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.run import Run


class L1(Criterion):
    """The magnitude; of a set, the sum of the magnitudes."""

    name = "l1"

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """|w|."""
        return weight.detach().abs()


class L2(Criterion):
    """The magnitude; of a set, the root of the sum of the squares."""

    name = "l2"

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """w^2."""
        from compress_prune.scoring import at_least_single

        return at_least_single(weight.detach()).square()

    def pooled(self, total: Tensor) -> Tensor:
        """The norm."""
        return total.sqrt()


class Taylor(Criterion):
    """How much the loss changes to first order: the magnitude of the sum of gradient times weight."""

    name = "taylor"
    needs_gradients = True

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """A running mean of the gradients."""
        from compress_prune.observing import Means

        return Means(model)

    def observe(self, model: nn.Module, state: nn.Module | None) -> None:
        """Add the gradients to the mean."""
        from compress_prune.observing import means

        means(state).add(model, lambda weight, gradient: gradient)

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """G w."""
        from compress_prune.observing import means
        from compress_prune.scoring import first_order

        return first_order(weight, means(state).of(name))

    def pooled(self, total: Tensor) -> Tensor:
        """The magnitude of the sum."""
        return total.abs()


class Fisher(Criterion):
    """How much the loss changes to second order: half the squared gradient times the squared weight."""

    name = "fisher"
    needs_gradients = True

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """A running mean of the squared gradients."""
        from compress_prune.observing import Means

        return Means(model)

    def observe(self, model: nn.Module, state: nn.Module | None) -> None:
        """Add the squared gradients to the mean."""
        from compress_prune.observing import means

        means(state).add(model, lambda weight, gradient: gradient.square())

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """1/2 E[g^2] w^2."""
        from compress_prune.observing import means
        from compress_prune.scoring import second_order

        return second_order(weight, means(state).of(name))


class SecondMoment(Criterion):
    """The magnitude of a weight times the root of its squared gradient, a mean over the last thousand updates."""

    name = "second-moment"
    needs_gradients = True

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """A slow running mean of the squared gradients."""
        from compress_prune.observing import SLOW, Means

        return Means(model, SLOW)

    def observe(self, model: nn.Module, state: nn.Module | None) -> None:
        """Add the squared gradients to the mean."""
        from compress_prune.observing import means

        means(state).add(model, lambda weight, gradient: gradient.square())

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """|w| sqrt(E[g^2])."""
        from compress_prune.observing import means

        return weight.detach().abs() * means(state).of(name).sqrt()


class Movement(Criterion):
    """Whether training moves a weight towards zero, which scores least, or away from it."""

    name = "movement"
    needs_gradients = True
    needs_epochs = True

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """A sum over the updates."""
        from compress_prune.observing import PerWeight

        return PerWeight(model)

    def observe(self, model: nn.Module, state: nn.Module | None) -> None:
        """Subtract gradient times weight."""
        from compress_prune.observing import means
        from compress_prune.scoring import first_order

        means(state).add(model, lambda weight, gradient: -first_order(weight, gradient))

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """-sum of g w."""
        from compress_prune.observing import means

        return means(state).of(name)


class Random(Criterion):
    """Chance, by the run's seed: what every other criterion has to beat."""

    name = "random"

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """A number for each weight."""
        import torch

        from compress_prune.observing import PerWeight

        lots = torch.Generator().manual_seed(run.seed)
        return PerWeight(model, lambda weight: torch.rand(weight.shape, generator=lots).to(weight))

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """A number from the uniform distribution."""
        from compress_prune.observing import means

        return means(state).of(name)


class Scale(Criterion):
    """The factor of the norm behind a channel; `tune: {l1: ..., l1_on: scales}` teaches training to make many small."""

    name = "scale"

    def channel_scores(self, model: nn.Module, path: str, side: str, state: nn.Module | None) -> Tensor | None:
        """|gamma| of a norm."""
        from compress_core.weights import NORMS

        layer = model.get_submodule(path)
        scale = layer._parameters.get("weight") if isinstance(layer, NORMS) and side == "out" else None
        return None if scale is None else scale.detach().abs()


class GeometricMedian(Criterion):
    """How far a filter is from all others of its layer: one in their middle can be replaced by them."""

    name = "geometric-median"

    def channel_scores(self, model: nn.Module, path: str, side: str, state: nn.Module | None) -> Tensor | None:
        """The sum of the distances to the other filters."""
        from compress_prune.observing import is_layer
        from compress_prune.scoring import distances, rows

        layer = model.get_submodule(path)
        return distances(rows(layer, "out")) if is_layer(layer) and side == "out" else None


class Activation(Criterion):
    """The mean magnitude of what the layers behind a channel read from it."""

    name = "activation"
    statistic: ClassVar[str] = "magnitude"

    def begin(self, model: nn.Module, run: Run) -> nn.Module | None:
        """A figure for each channel that a layer reads."""
        from compress_prune.observing import Inputs

        return Inputs(model, self.statistic)

    def measure(self, model: nn.Module, state: nn.Module | None, run: Run) -> None:
        """Watch the inputs of all layers on the calibration batches."""
        from compress_prune.observing import inputs

        inputs(state).measure(model, run)

    def channel_scores(self, model: nn.Module, path: str, side: str, state: nn.Module | None) -> Tensor | None:
        """The figure of each channel that the layer reads."""
        from compress_prune.observing import inputs

        return inputs(state).of(path) if side == "in" else None


class Apoz(Activation):
    """How seldom a channel is zero or less in what the layers behind it read: one minus the percentage of zeros."""

    name = "apoz"
    statistic: ClassVar[str] = "alive"


class Wanda(Activation):
    """The magnitude of a weight times the norm of the input that it multiplies."""

    name = "wanda"
    statistic: ClassVar[str] = "norm"

    def weight_scores(self, name: str, weight: Tensor, state: nn.Module | None) -> Tensor | None:
        """|w| ||a||; inputs that are not seen, as of an LSTM or an embedding, count as 1."""
        from compress_prune.observing import inputs

        return weight.detach().abs() * inputs(state).factor(name, weight)


BUILT_IN: tuple[type[Criterion], ...] = (
    L1,
    L2,
    Taylor,
    Fisher,
    SecondMoment,
    Movement,
    Random,
    Scale,
    GeometricMedian,
    Activation,
    Apoz,
    Wanda,
)
