"""Tensors that share memory are told from those that only lie in one storage, and are written as copies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress_core.measure import tensor_bytes
from compress_core.sharing import apart, overlap

BASE = torch.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BASE[:2], BASE[2:]),
        (BASE[:, :3], BASE[:, 3:]),
        (BASE[:, ::2], BASE[:, 1::2]),
        (BASE[0], BASE[1].clone()),
        (BASE[:0], BASE),
    ],
)
def test_parts_of_one_storage_that_have_nothing_in_common_do_not_overlap(one, other):
    assert overlap({"a": one, "b": other}) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BASE, BASE.view(6, 4)),
        (BASE, BASE.t()),
        (BASE[:3], BASE[2:]),
        (BASE[:, 2], BASE[3]),
        (BASE[:1].expand(9, 6), BASE[0, 5:]),
        (BASE, BASE.view(torch.int32)[1:]),
        (nn.Parameter(BASE), BASE.detach()[3]),
    ],
)
def test_tensors_with_an_element_in_common_are_named_in_order(one, other):
    assert overlap({"b": one, "c": torch.zeros(3), "a": other}) == ("a", "b")


SLICES = st.builds(slice, st.integers(0, 5), st.integers(0, 6), st.integers(1, 3))


@given(SLICES, SLICES, SLICES, SLICES)
def test_two_slices_overlap_if_they_hold_the_same_element(rows, columns, other_rows, other_columns):
    base = torch.arange(36).reshape(6, 6)
    one, other = base[rows, columns], base[other_rows, other_columns].t()
    common = set(one.flatten().tolist()) & set(other.flatten().tolist())
    assert (overlap({"a": one, "b": other}) is not None) == bool(common)


def test_apart_copies_only_what_lies_on_another():
    base = torch.arange(8.0)
    given_tensors = {"whole": base, "part": base[2:4], "again": base, "other": torch.ones(2)}
    found = apart(given_tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in given_tensors.items())
    assert overlap(found) is None
    copied = {name for name, tensor in found.items() if tensor.data_ptr() != given_tensors[name].data_ptr()}
    assert len(copied) == 2 and "other" not in copied
    halves = apart({"a": base[:4], "b": base[4:]})
    assert halves["b"].data_ptr() == base[4:].data_ptr()


def test_the_bytes_of_a_network_whose_tensors_share_memory_are_those_of_copies():
    def net(shared):
        model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
        if shared:
            model[1].weight.data = model[0].weight.data.t()
        return model

    assert tensor_bytes(net(True)) == tensor_bytes(net(False))
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    model.register_buffer("head", model[0].weight.data[:2])
    assert 320 < tensor_bytes(model) < 520, "64 + 16 numbers of 4 bytes and a header"
