"""What `benchmarks/channel_pruning.py` rests on: the shifted images, the paired interval, torch-pruning's network."""

from __future__ import annotations

import pytest
import torch
from compress_tasks import Classification
from compress_zoo import ResNet20
from torch import Tensor
from torch.nn import functional as F

from benchmarks import channel_pruning
from benchmarks._files import difference
from benchmarks._pictures import PADDING, Pictures, Shifted, normalized
from compress_core.data import Columns, Splits
from compress_core.measure import counts
from compress_core.run import Run


def columns(examples: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (examples, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return {"image": image, "label": torch.arange(examples) % 10}


def test_a_shifted_image_is_a_crop_of_the_bordered_one_or_its_mirror_image() -> None:
    own = columns()
    batch = Shifted(own, seed=0).take(torch.tensor([4, 1]))
    assert batch["label"].tolist() == [4, 1]
    for found, index in zip(batch["image"], (4, 1), strict=True):
        padded = F.pad(own["image"][index], (PADDING,) * 4)
        crops = torch.stack([padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)])
        allowed = normalized(torch.cat([crops, crops.flip(-1)]))
        assert (allowed == found).flatten(1).all(1).any()


def test_a_seed_shifts_alike_and_the_next_batch_otherwise() -> None:
    one, other = Shifted(columns(), seed=1), Shifted(columns(), seed=1)
    indices = torch.arange(6)
    first = one.take(indices)["image"]
    assert torch.equal(first, other.take(indices)["image"])
    assert not torch.equal(first, one.take(indices)["image"])


def test_a_plain_picture_is_normalized_as_the_published_networks_take_it() -> None:
    own = columns(1)
    red = float(own["image"][0, 0, 5, 7])
    assert float(Pictures(own).take(torch.tensor([0]))["image"][0, 0, 5, 7]) == pytest.approx(
        (red / 255 - 0.485) / 0.229
    )


def test_the_difference_is_paired_with_the_interval_of_its_mean() -> None:
    one, other = torch.tensor([1.0, 1.0, 0.0, 1.0]).double(), torch.tensor([1.0, 0.0, 0.0, 1.0]).double()
    value, low, high = difference(one, other)
    assert value == pytest.approx(25.0)
    assert (low, high) == pytest.approx((25 - 1.96 * 50 / 2, 25 + 1.96 * 50 / 2))


def test_torch_prunings_network_keeps_its_streams_and_has_no_more_macs_than_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_pruning, "STEPS", 25)
    split = Columns({"image": torch.randn(2, 3, 32, 32), "label": torch.tensor([0, 1])})
    world = Run(splits=Splits(split, split, split), task=Classification())
    torch.manual_seed(0)
    dense = counts(ResNet20(), world.example).macs
    found = channel_pruning.torch_pruned(ResNet20(), world)
    assert 0.3 * dense < counts(found, world.example).macs <= dense / channel_pruning.FEWER
    assert [len(found.get_parameter(f"layer{stage}.0.conv2.weight")) for stage in (1, 2, 3)] == [16, 32, 64]
