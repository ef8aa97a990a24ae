"""Removed weights are set to zero."""

from __future__ import annotations

import pytest
import torch

from compress_core.masks import set_zero


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_gone_becomes_a_positive_zero_and_the_rest_keeps_its_bits(kind: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.randn(33, 7, generator=torch.Generator().manual_seed(0)).to(kind))
    gone = torch.rand(33, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    before = weight.detach().clone()
    set_zero(weight, gone)
    assert torch.equal(weight, before.masked_fill(gone, 0))
    assert not torch.signbit(weight[gone]).any()


def test_weights_that_lie_otherwise_in_memory_are_set_to_zero_too() -> None:
    weight, gone = torch.ones(3, 4).t(), torch.eye(4, 3).bool()
    set_zero(weight, gone)
    assert weight.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
