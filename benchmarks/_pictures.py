"""CIFAR-10 as the benchmarks train on it: bytes in memory, cropped and flipped as they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from compress_core.data import Batch, Columns, Splits

if TYPE_CHECKING:
    from benchmarks.harness import Bench

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images on which the published networks were trained."""
PADDING = 4


class Pictures(Columns):
    """Images in bytes, (examples, 3, H, W); normalized as they are taken."""

    def take(self, indices: Tensor) -> Batch:
        """The examples at `indices`, as float32 in torch's channels-last format."""
        return {"image": normalized(self.columns["image"][indices]), "label": self.columns["label"][indices]}


class Shifted(Pictures):
    """The same, each shifted by up to four pixels both ways, over a border of black, and mirrored every second time.

    He et al. 2016, Deep Residual Learning, sec. 4.2. What is drawn depends on the seed and on what was taken before.
    """

    def __init__(self, columns: Mapping[str, Tensor], seed: int) -> None:
        super().__init__(columns)
        self.generator = torch.Generator().manual_seed(seed)
        self.padded = F.pad(columns["image"], (PADDING,) * 4)

    def take(self, indices: Tensor) -> Batch:
        """The examples at `indices`, in another place each time."""
        count, size = len(indices), self.columns["image"].shape[-1]
        top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=self.generator)
        mirrored = torch.rand(count, 1, generator=self.generator) < 0.5
        pixels = torch.arange(size)
        rows, columns = top + pixels, left + torch.where(mirrored, pixels.flip(0), pixels)
        image = self.padded[indices[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return {"image": normalized(image.permute(0, 3, 1, 2)), "label": self.columns["label"][indices]}


def normalized(image: Tensor) -> Tensor:
    """Bytes (examples, 3, H, W) as the published networks take them."""
    mean, std = (255 * torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return ((image.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def cifar10(bench: Bench, seed: int, train: int | None, validation: int) -> Splits:
    """So many images to learn from (None: all others), so many held out from train, and the test images."""
    from compress_data import Parquet

    limit = None if train is None else train + validation
    total = 50_000 if limit is None else limit
    source = Parquet(folder=str(bench.data("cifar10")), image="img", limit=limit, validation_share=validation / total)
    found = source.splits(seed)
    learned, held_out, test = (_bytes(split) for split in (found.train, found.validation, found.test))
    return Splits(Shifted(learned, seed), Pictures(held_out), Pictures(test), found.about)


def _bytes(split: Columns) -> dict[str, Tensor]:
    return {"image": (split.column("image") * 255).round().to(torch.uint8), "label": split.column("label")}
