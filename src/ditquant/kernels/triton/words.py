"""Read packed codes four at a time: with 2 to 8 bits a code, four of them begin at a multiple of four bits."""

import triton
import triton.language as tl


@triton.jit
def four_codes(codes, quad, mask, width, BITS: tl.constexpr):
    """Return, in the low bits of a word, codes 4 quad .. 4 quad + 3 of rows that `codes` points to; 0 where not `mask`.

    `width` is the number of bytes of a row.
    """
    first = quad * (4 * BITS)
    byte = first >> 3
    word = tl.load(codes + byte, mask=mask & (byte < width), other=0).to(tl.uint32)
    for i in tl.static_range(1, (BITS + 1) // 2):
        more = tl.load(codes + byte + i, mask=mask & (byte + i < width), other=0).to(tl.uint32)
        word |= more << (8 * i)
    return word >> (first & 7).to(tl.uint32)


@triton.jit
def code_of(word, i, BITS: tl.constexpr):
    """Return code i of the four in a word, as int32."""
    return ((word >> (i * BITS)) & ((1 << BITS) - 1)).to(tl.int32)
