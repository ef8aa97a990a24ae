"""What the benchmarks on CIFAR-10 share: the published networks, the splits, and how all of them are fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.harness import Bench

if TYPE_CHECKING:
    from torch import nn

    from compress_core.data import Splits
    from compress_core.parts import TrainingTechnique
    from compress_core.run import Run


def published(bench: Bench, depth: int) -> nn.Module:
    """The ResNet of 20 or 56 layers with the published weights."""
    import compress_zoo
    from safetensors.torch import load_file

    model: nn.Module = getattr(compress_zoo, f"ResNet{depth}")()
    model.load_state_dict(load_file(bench.weights(f"resnet{depth}-cifar10")))
    return model.eval()


def splits_anew(bench: Bench, seed: int, train: int | None, validation: int) -> Callable[[], Splits]:
    """Makes the splits anew at each call, so that every training draws the same shifts."""
    from benchmarks._pictures import Shifted, cifar10
    from compress_core.data import Splits

    found = cifar10(bench, seed, train, validation)
    return lambda: Splits(Shifted(found.train.columns, seed), found.validation, found.test, found.about)


def run_of(bench: Bench, seed: int, splits: Splits, teacher: nn.Module | None = None) -> Run:
    """A run of classification in bfloat16 that tells what it does."""
    from compress_tasks import Classification

    from compress_core.run import Run, as_teacher

    return Run(
        splits=splits,
        task=Classification(),
        seed=seed,
        precision="bfloat16",
        teacher=None if teacher is None else as_teacher(teacher),
        printer=bench.say,
        teller=bench.say,
    )


def fine_tuning(epochs: int, rate: float) -> TrainingTechnique:
    """SGD with a cosine schedule on batches of 128; the last epoch is kept."""
    from compress_tune import Tune

    return Tune(
        epochs=epochs,
        batch_size=128,
        optimizer="sgd",
        nesterov=True,
        learning_rate=rate,
        weight_decay=5e-4,
        schedule="cosine",
        warmup=0.05,
        keep="last",
    )
