"""The threshold of the k smallest magnitudes, against a full sort."""

from __future__ import annotations

import compress_prune.threshold as module
import pytest
import torch
from compress_prune.threshold import at_most, kth_magnitude
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def sorted_magnitudes(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().abs().reshape(-1) for tensor in tensors]).sort().values


@pytest.mark.parametrize("kind", TYPES)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_it_is_the_k_th_of_all_magnitudes(kind: torch.dtype, sizes: list[int], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-4, 4, (len(sizes),), generator=generator)
    tensors = [
        (torch.randn(size, 3, generator=generator) * scale).to(kind) for size, scale in zip(sizes, scales, strict=True)
    ]
    ranked = sorted_magnitudes(tensors)
    k = 1 + int(share * (len(ranked) - 1))
    cut = kth_magnitude(tensors, k)
    assert float(cut.threshold) == float(ranked[k - 1])
    assert cut.ties == k - int((ranked < ranked[k - 1]).sum())
    assert sum(int(mask.sum()) for mask in at_most(tensors, cut)) == k


@given(values=st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=40), data=st.data())
def test_equal_magnitudes_go_in_the_order_of_their_positions(values: list[float], data: st.DataObject) -> None:
    tensors = [torch.tensor(values[: len(values) // 2 + 1]), torch.tensor(values[len(values) // 2 + 1 :])]
    k = data.draw(st.integers(1, len(values)))
    masks = torch.cat([mask.reshape(-1) for mask in at_most(tensors, kth_magnitude(tensors, k))])
    first = torch.tensor(values).abs().argsort(stable=True)[:k]
    assert masks.nonzero().flatten().tolist() == sorted(first.tolist())


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(7, 11).round(decimals=1), torch.randn(5, 3, 2, 2).round(decimals=1)]
    gone = [torch.rand(tensor.shape) < 0.3 for tensor in tensors]
    whole = kth_magnitude(tensors, 40, gone)
    masks = list(at_most(tensors, whole, gone))
    monkeypatch.setattr(module, "BLOCK", 4)
    pieces = kth_magnitude(tensors, 40, gone)
    assert (pieces.threshold, pieces.ties) == (whole.threshold, whole.ties)
    assert all(map(torch.equal, masks, at_most(tensors, pieces, gone)))


def test_what_is_gone_does_not_count_and_stays_gone() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.3], [-0.4, 0.5, 0.6]])
    gone = torch.tensor([[True, False, False], [False, False, True]])
    cut = kth_magnitude([weight], 2, [gone])
    assert float(cut.threshold) == pytest.approx(0.3)
    (mask,) = at_most([weight], cut, [gone])
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_tensors_of_several_types_are_compared_in_the_widest() -> None:
    tensors = [torch.tensor([1.0, 3.0], dtype=torch.float16), torch.tensor([2.0], dtype=torch.float32)]
    cut = kth_magnitude(tensors, 2)
    assert cut.threshold.dtype == torch.float32 and float(cut.threshold) == 2.0
    assert [mask.tolist() for mask in at_most(tensors, cut)] == [[True, False], [True]]


def test_infinity_and_nan_come_last() -> None:
    weight = torch.tensor([float("nan"), 1.0, float("-inf"), 2.0])
    assert float(kth_magnitude([weight], 2).threshold) == 2.0
    assert float(kth_magnitude([weight], 3).threshold) == float("inf")


def test_a_transposed_weight_keeps_its_shape() -> None:
    weight = torch.arange(6.0).reshape(2, 3).t()
    (mask,) = at_most([weight], kth_magnitude([weight], 3))
    assert mask.shape == weight.shape and torch.equal(mask, weight < 3)


@pytest.mark.parametrize("k", [0, 5])
def test_a_count_that_is_not_there_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="of 4 entries"):
        kth_magnitude([torch.ones(2, 2)], k)
