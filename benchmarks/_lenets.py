"""What the benchmarks on MNIST share: the digits, a step of the product, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.harness import Bench

if TYPE_CHECKING:
    from torch import nn

    from compress_core.data import Splits
    from compress_core.parts import Technique

HELD_OUT = 5_000
"""Training images on which everything is chosen."""
MEAN, STD = 0.1307, 0.3081
"""Of the training pixels."""


def mnist(bench: Bench) -> Splits:
    """The digits in memory.

    Raises:
        DataError: they are not there.
    """
    from compress_data import Parquet

    folder = str(bench.data("mnist"))
    bench.say("reading the digits")
    source = Parquet(folder=folder, image="image", validation_share=HELD_OUT / 60_000, mean=(MEAN,), std=(STD,))
    return source.splits(0)


def fresh(factory: str, seed: int) -> nn.Module:
    """A network of compress_zoo with its first weights; convolutions lie channel by channel, which trains faster."""
    import compress_zoo
    import torch

    from compress_core.seeding import seeded

    with seeded(seed):
        model: nn.Module = getattr(compress_zoo, factory)()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def step(
    model: nn.Module,
    techniques: Sequence[Technique],
    splits: Splits,
    seed: int,
    *,
    teacher: nn.Module | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """One step of the product; the network that comes in teaches unless another is given."""
    from compress_tasks import Classification

    from compress_core.applying import apply_techniques
    from compress_core.run import Run, as_teacher

    run = Run(splits=splits, task=Classification(), seed=seed, teacher=as_teacher(teacher or model), teller=say)
    return apply_techniques(model, techniques, run)


def nonzero(model: nn.Module) -> int:
    """Parameters that are not zero."""
    return sum(int((parameter != 0).sum()) for parameter in model.parameters())


def total(model: nn.Module) -> int:
    """All parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def accuracy(model: nn.Module, splits: Splits) -> float:
    """Of the test images, in percent."""
    return _accuracy(model, splits, "test")


def validation(model: nn.Module, splits: Splits) -> float:
    """Of the held-out images, in percent."""
    return _accuracy(model, splits, "validation")


def _accuracy(model: nn.Module, splits: Splits, split: str) -> float:
    from compress_tasks import Classification

    from compress_core.data import batches
    from compress_core.measure import quality

    return 100 * quality(model, batches(getattr(splits, split), 1000), Classification()).value
