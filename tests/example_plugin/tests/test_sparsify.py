"""Sparsify: the pattern, and the promises of every technique and watcher."""

from __future__ import annotations

import pytest
import torch
from compress_example import Sparsify
from compress_example.pattern import keep_largest

from compress_core.testing import check_watcher, checks_for


def test_the_two_largest_magnitudes_of_each_four_stay():
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.5, 0.1, -0.2, 0.3]])
    assert keep_largest(weight, 2, 4).tolist() == [[0.0, -4.0, 0.0, 3.0, 0.5, 0.0, 0.0, pytest.approx(0.3)]]


def test_each_place_of_a_kernel_is_a_group_of_its_own():
    weight = torch.randn(3, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    sparse = keep_largest(weight, 1, 4)
    assert ((sparse != 0).unflatten(1, (2, 4)).sum(2) == 1).all()
    assert torch.equal(sparse.unflatten(1, (2, 4)).abs().amax(2), weight.unflatten(1, (2, 4)).abs().amax(2))


def test_keeping_all_is_refused():
    with pytest.raises(ValueError, match="`keep` must be smaller than `of`"):
        Sparsify(keep=4, of=4)


@pytest.mark.parametrize("check", checks_for(Sparsify(keep=2, of=4)), ids=str)
def test_it_keeps_the_promises_of_a_technique(check):
    check()


def test_it_keeps_the_promises_of_a_watcher():
    assert list(check_watcher("compress_example.watcher")) == [
        "exported/scalars.jsonl",
        "failed/scalars.jsonl",
        "trained/scalars.jsonl",
    ]
