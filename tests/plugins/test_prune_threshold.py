"""The threshold of the k smallest of many numbers, against a full sort."""

from __future__ import annotations

import compress_prune.threshold as module
import pytest
import torch
from compress_prune.threshold import at_most, kth_smallest, magnitudes, smallest, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def of(tensors: list[Tensor]) -> list[module.Numbers]:
    return [values(tensor.clone) for tensor in tensors]


@pytest.mark.parametrize("kind", TYPES)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_it_is_the_k_th_of_all_numbers(kind: torch.dtype, sizes: list[int], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-4, 4, (len(sizes),), generator=generator)
    tensors = [
        (torch.randn(size, 3, generator=generator) * scale).to(kind) for size, scale in zip(sizes, scales, strict=True)
    ]
    none = [torch.zeros_like(tensor, dtype=torch.bool) for tensor in tensors]
    sizes_alone = [magnitudes(tensor, mask) for tensor, mask in zip(tensors, none, strict=True)]
    for numbers, shown in ((of(tensors), tensors), (sizes_alone, [tensor.abs() for tensor in tensors])):
        ranked = torch.cat([tensor.double().reshape(-1) for tensor in shown]).sort().values
        k = 1 + int(share * (len(ranked) - 1))
        cut = kth_smallest(numbers, k, kind)
        assert float(cut.threshold) == float(ranked[k - 1])
        assert cut.ties == k - int((ranked < ranked[k - 1]).sum())
        assert sum(int(mask.sum()) for mask in at_most(numbers, cut)) == k


@given(values=st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=40), data=st.data())
def test_equal_numbers_go_in_the_order_of_their_positions(values: list[float], data: st.DataObject) -> None:
    half = len(values) // 2 + 1
    numbers = of([torch.tensor(values[:half]), torch.tensor(values[half:])])[: 2 if half < len(values) else 1]
    k = data.draw(st.integers(0, len(values)))
    masks = torch.cat(list(smallest(numbers, k)))
    first = torch.tensor(values).argsort(stable=True)[:k]
    assert masks.nonzero().flatten().tolist() == sorted(first.tolist())


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(7, 11).round(decimals=1), torch.randn(5, 3, 2, 2).round(decimals=1)]
    whole, masks = kth_smallest(of(tensors), 40), list(smallest(of(tensors), 40))
    monkeypatch.setattr(module, "BLOCK", 4)
    pieces = kth_smallest(of(tensors), 40)
    assert (pieces.threshold, pieces.ties) == (whole.threshold, whole.ties)
    assert all(map(torch.equal, masks, smallest(of(tensors), 40)))


def test_numbers_of_several_types_are_compared_in_the_one_that_is_asked_for() -> None:
    tensors = [torch.tensor([1.0, 3.0], dtype=torch.float16), torch.tensor([2.0], dtype=torch.float32)]
    cut = kth_smallest(of(tensors), 2)
    assert cut.threshold.dtype == torch.float32 and float(cut.threshold) == 2.0
    assert [mask.tolist() for mask in at_most(of(tensors), cut)] == [[True, False], [True]]


def test_infinities_are_at_the_ends_and_nan_is_last() -> None:
    numbers = of([torch.tensor([float("nan"), 1.0, float("-inf"), float("inf"), -2.0])])
    assert [float(kth_smallest(numbers, k).threshold) for k in (1, 2, 3, 4)] == [float("-inf"), -2, 1, float("inf")]


def test_what_is_gone_goes_before_zeros() -> None:
    weight = torch.tensor([[0.0, -0.2, 0.3], [-0.4, 0.5, 0.0]])
    gone = torch.tensor([[False, False, False], [False, True, True]])
    masks = [next(smallest([magnitudes(weight, gone)], k)).nonzero().flatten().tolist() for k in (2, 3, 4)]
    assert masks == [[4, 5], [0, 4, 5], [0, 1, 4, 5]]


@pytest.mark.parametrize("k", [0, 5])
def test_a_count_that_is_not_there_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="of 4 entries"):
        kth_smallest(of([torch.ones(2, 2)]), k)
