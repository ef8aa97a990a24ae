"""Integers of few bits in bytes."""

from __future__ import annotations

import pytest
import torch
from compress_quantize.packing import fields_of, pack, packed_columns, unpack
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(2, 4), rows=st.integers(1, 5), columns=st.integers(1, 37), seed=st.integers(0, 2**31))
def test_every_integer_comes_back_from_its_byte(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=generator)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_columns(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes.to(torch.int8))


def test_the_first_code_lies_in_the_lowest_bits_as_twos_complement():
    assert pack(torch.tensor([[1, -1, 7]]), 4).tolist() == [[0xF1, 0x07]]
    assert pack(torch.tensor([[1, -1, -2, 0, 1]]), 2).tolist() == [[0b00_10_11_01, 1]]
    assert pack(torch.tensor([[3, -3]]), 3).tolist() == [[0xD3]]


@pytest.mark.parametrize(("bits", "fields"), [(2, 4), (3, 2), (4, 2)])
def test_codes_share_bytes(bits, fields):
    assert fields_of(bits) == fields
    assert packed_columns(9, bits) == -(-9 // fields)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_byte_is_unpacked_and_packed_again(bits):
    every = torch.arange(256, dtype=torch.uint8).reshape(1, -1)
    columns = 256 * fields_of(bits)
    codes = unpack(every, bits, columns)
    if bits != 3:
        assert torch.equal(pack(codes, bits), every)
    assert not codes[0, : fields_of(bits)].any()
