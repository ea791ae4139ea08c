"""Smooth, order, sign and rotate the channels of tokens in one pass, then round them to codes or store them.

A row of a program's tile is one block of channels of one token, so that a Hadamard matrix rotates all of them in one
product; the token's scale is taken over its rows. Inputs are split into two numbers of 8 bits each, and the matrix
holds +1 and -1, so that tensor cores multiply without an error that matters.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.launch import launch, multiplied, power_of_two
from ditquant.kernels.triton.scales import to_codes, token_scale

TILE = 8192  # numbers of a tile, unless one token has more
PROGRAMS = 512  # with more tiles than this, a program takes several and makes its matrix once


@triton.jit
def hadamard(BLOCK: tl.constexpr):
    """Return +1 and -1 [BLOCK, BLOCK] of Sylvester's matrix: the parity of the common bits of row and column."""
    i = tl.arange(0, BLOCK)
    common = i[:, None] & i[None, :]
    common ^= common >> 4
    common ^= common >> 2
    common ^= common >> 1
    return 1.0 - 2.0 * (common & 1).to(tl.float32)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _rotate(
    x, factor, order, signs, y, scale, zero, tokens, tiles, channels, x_stride, y_stride, clip,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, TOKENS: tl.constexpr, FACTOR: tl.constexpr, ORDER: tl.constexpr,
    ONE_TERM: tl.constexpr, STEPS: tl.constexpr, SYMMETRIC: tl.constexpr, HALF: tl.constexpr, MATMUL: tl.constexpr,
):  # fmt: skip
    matrix = hadamard(BLOCK).to(MATMUL)
    rows = tl.arange(0, TOKENS * BLOCKS)
    channel = (rows % BLOCKS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = channel < channels
    bits = tl.load(signs + (channel >> 3), mask=inside, other=0)
    sign = 1.0 - 2.0 * ((bits >> (channel & 7).to(tl.uint8)) & 1).to(tl.float32)
    source = channel
    if ORDER:
        source = tl.load(order + channel, mask=inside, other=0).to(tl.int32)
    if FACTOR:
        sign *= tl.load(factor + channel, mask=inside, other=0.0).to(tl.float32)
    for i in range(tiles):
        first = (tl.program_id(0) * tiles + i) * TOKENS
        token = (first + rows // BLOCKS)[:, None]
        mask = inside & (token < tokens)
        value = tl.load(x + token.to(tl.int64) * x_stride + source, mask=mask, other=0.0).to(tl.float32) * sign
        high = value.to(HALF)
        rotated = tl.dot(high.to(MATMUL), matrix, input_precision="ieee")
        if not ONE_TERM:
            low = (value - high.to(tl.float32)).to(HALF)
            rotated = tl.dot(low.to(MATMUL), matrix, rotated, input_precision="ieee")
        rotated = rotated * (BLOCK**-0.5)
        place = y + token.to(tl.int64) * y_stride + channel
        if STEPS == 0:
            tl.store(place, rotated, mask=mask)
        else:
            whole = tl.reshape(rotated, (TOKENS, BLOCKS * BLOCK))
            s, z = token_scale(whole, clip, STEPS, SYMMETRIC)
            codes = tl.reshape(to_codes(whole, s, z, STEPS, SYMMETRIC), (TOKENS * BLOCKS, BLOCK))
            tl.store(place, codes.to(tl.int8), mask=mask)
            each = first + tl.arange(0, TOKENS)
            tl.store(scale + each, s, mask=each < tokens)
            if not SYMMETRIC:
                tl.store(zero + each, z.to(tl.int32), mask=each < tokens)


def rotate(
    x: Tensor,  # [M, K]
    factor: Tensor | None,  # bfloat16 [K]
    order: Tensor | None,  # int16 or int32 [K]
    signs: Tensor,  # packed bits
    block: int,
    y: Tensor,  # [M, >= K]: floats, or codes int8 with scale and zero point
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    bits: int = 0,
    clip: float = 1.0,
) -> None:
    """Write x * factor, or x in another order, after signs and Hadamard blocks; `bits` 0 stores floats."""
    tokens, channels = x.shape
    blocks = power_of_two(channels // block)
    together = max(1, TILE // (blocks * block), -(-16 // blocks))
    needed = -(-tokens // together)
    tiles = max(1, needed // PROGRAMS)
    launch(
        _rotate,
        (-(-needed // tiles),),
        **{"x": x, "factor": factor, "order": order, "signs": signs, "y": y, "scale": scale, "zero": zero},
        **{"tokens": tokens, "tiles": tiles, "channels": channels, "x_stride": x.stride(0), "y_stride": y.stride(0)},
        **{"clip": clip, "BLOCK": block, "BLOCKS": blocks, "TOKENS": together},
        **{"FACTOR": factor is not None, "ORDER": order is not None},
        ONE_TERM=x.dtype == torch.bfloat16 and factor is None,
        STEPS=2 ** (bits - 1) if bits else 0,
        SYMMETRIC=zero is None,
        **{"HALF": tl.bfloat16, "MATMUL": multiplied(torch.bfloat16)},
        num_warps=8,
    )
