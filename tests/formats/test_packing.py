"""Packed codes come back, take no bit too many, and lie where numpy's own bit packing puts them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditquant.formats.packing import pack, packed_width, unpack

WIDTHS = (1, 7, 8, 63, 1000, 1152)


def some_codes(rows: int, width: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back_and_take_their_bits(bits, width):
    codes = some_codes(5, width, bits)
    packed = pack(codes, bits)
    assert packed.shape == (5, packed_width(width, bits)) == (5, -(-width * bits // 8))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits, width), codes)


@given(bits=st.integers(1, 8), width=st.integers(1, 70), rows=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_the_bits_are_those_of_a_little_endian_stream(bits, width, rows, seed):
    codes = some_codes(rows, width, bits, seed)
    stream = np.unpackbits(codes.numpy()[..., None], axis=-1, bitorder="little")[..., :bits].reshape(rows, -1)
    assert np.array_equal(pack(codes, bits).numpy(), np.packbits(stream, axis=1, bitorder="little"))
    assert torch.equal(unpack(pack(codes, bits), bits, width), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_any_bytes_give_codes_below_two_to_the_bits(bits):
    packed = some_codes(3, packed_width(63, bits), 8)
    codes = unpack(packed, bits, 63)
    assert codes.shape == (3, 63)
    assert int(codes.max()) < 2**bits


def test_codes_need_not_be_contiguous():
    codes = some_codes(16, 9, 3)
    assert torch.equal(pack(codes.t().contiguous().t(), 3), pack(codes, 3))
