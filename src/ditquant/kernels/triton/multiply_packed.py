"""Few tokens x packed weights: codes are decoded on their way to the tensor cores, and read once.

A word holds four codes of neighbouring channels; the product is the sum of four, each over every fourth channel, so
that nothing has to be put in order.
"""

import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.epilogue import finish
from ditquant.kernels.triton.launch import LANGUAGE, launch, multiplied, power_of_two
from ditquant.kernels.triton.levels import level
from ditquant.kernels.triton.words import code_of, four_codes

BN = 32
QUADS = 32  # of a step: `DEPTH` channels, to which activations are padded


@triton.jit(do_not_specialize=["tokens"])
def _few_codes(
    a, codes, table, zero_point, y, scale, zero, row_scale, bias, tokens, rows, channels, width, depth, table_stride,
    BM: tl.constexpr, BN: tl.constexpr, QUADS: tl.constexpr, BITS: tl.constexpr, TABLE: tl.constexpr,
    ZERO_POINT: tl.constexpr, ZERO: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    left, here = a + token.to(tl.int64)[:, None] * depth, row.to(tl.int64)[:, None]
    valid = (row < rows)[:, None]
    total = tl.zeros((BM, BN), dtype=tl.int32)
    sums = tl.zeros((BN,), dtype=tl.int32)
    middle = tl.zeros((BN, 1), dtype=tl.int32) + (1 << (BITS - 1))
    if ZERO_POINT:
        middle = tl.load(zero_point + here, mask=valid, other=0).to(tl.int32)
    for first in range(0, tl.cdiv(channels, 4), QUADS):
        quad = first + tl.arange(0, QUADS)[None, :]
        word = four_codes(codes + here * width, quad, valid & (quad * 4 < channels), width, BITS)
        for i in tl.static_range(4):
            channel = quad * 4 + i
            code = code_of(word, i, BITS)
            mask = valid & (channel < channels)
            if TABLE:
                weight = tl.load(table + here * table_stride + code, mask=mask, other=0)
            else:
                weight = tl.where(mask, code - middle, 0).to(tl.int8)
            x = tl.load(left + channel, mask=(token < tokens)[:, None], other=0)  # zeros up to `depth` channels
            total = tl.dot(x, tl.trans(weight), total, out_dtype=tl.int32)
            if ZERO:
                sums += tl.sum(weight.to(tl.int32), 1)
    if ZERO:
        total -= tl.load(zero + token, mask=token < tokens, other=0)[:, None] * sums[None, :]
    out = total.to(tl.float32) * tl.load(scale + token, mask=token < tokens, other=0.0)[:, None]
    out *= tl.load(row_scale + row, mask=row < rows, other=0.0)[None, :]
    mask = (token < tokens)[:, None] & (row < rows)[None, :]
    finish(out, y, bias, None, None, token, row, mask, rows, tokens, BIAS, False, False)


def multiply_packed(
    values: Tensor,  # int8 [M, Kp]
    scale: Tensor,  # [1, M]
    zero: Tensor | None,  # int32 [1, M]
    codes: Tensor,  # [N, P]
    table: Tensor | None,  # int8 [R, V], R = N or 1
    zero_point: Tensor | None,  # uint8 [N, 1]
    row_scale: Tensor,  # [N]
    bits: int,
    channels: int,
    y: Tensor,  # [M, N]
    bias: Tensor | None,
) -> None:
    """Write scale * row_scale * (values - zero) weightᵀ + bias, with weights as `decode` takes them."""
    (tokens, depth), (rows, width) = values.shape, codes.shape
    height = _height(tokens)
    launch(
        _few_codes,
        (-(-tokens // height), -(-rows // BN)),
        **{"a": values, "codes": codes, "table": table, "zero_point": zero_point, "y": y, "scale": scale},
        **{"zero": zero, "row_scale": row_scale, "bias": bias, "tokens": tokens, "rows": rows, "channels": channels},
        **{"width": width, "depth": depth},
        table_stride=0 if table is None or table.shape[0] == 1 else table.stride(0),
        **{"BM": height, "BN": BN, "QUADS": QUADS, "BITS": bits, "TABLE": table is not None},
        **{"ZERO_POINT": zero_point is not None, "ZERO": zero is not None, "BIAS": bias is not None},
        num_warps=4,
    )


@triton.jit(do_not_specialize=["tokens"])
def _few_floats(
    x, codes, table, scale, zero, y, bias, tokens, rows, channels, width, groups, group, x_stride,
    BM: tl.constexpr, BN: tl.constexpr, QUADS: tl.constexpr, BITS: tl.constexpr, TABLE: tl.constexpr,
    ZERO: tl.constexpr, BIAS: tl.constexpr, HALF: tl.constexpr, MATMUL: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    left, here = x + token.to(tl.int64)[:, None] * x_stride, row.to(tl.int64)[:, None]
    valid = (row < rows)[:, None]
    out = tl.zeros((BM, BN), dtype=tl.float32)
    for first in range(0, tl.cdiv(channels, 4), QUADS):
        quad = first + tl.arange(0, QUADS)[None, :]
        word = four_codes(codes + here * width, quad, valid & (quad * 4 < channels), width, BITS)
        for i in tl.static_range(4):
            channel = quad * 4 + i
            mask = valid & (channel < channels)
            code = code_of(word, i, BITS)
            weight = level(code, here, channel, mask, table, scale, zero, groups, group, BITS, TABLE, ZERO)
            part = tl.load(left + channel, mask=(token < tokens)[:, None] & (channel < channels), other=0.0)
            weight = tl.where(mask, weight, 0.0).to(HALF).to(MATMUL)
            out = tl.dot(part.to(MATMUL), tl.trans(weight), out, input_precision="ieee")
    mask = (token < tokens)[:, None] & (row < rows)[None, :]
    finish(out, y, bias, None, None, token, row, mask, rows, tokens, BIAS, False, False)


def multiply_levels(
    x: Tensor,  # [M, K]
    codes: Tensor,  # [N, P]
    table: Tensor | None,  # float32 [N, V]
    scale: Tensor | None,  # float32 [N, G]
    zero: Tensor | None,  # uint8 [N, G]
    bits: int,
    y: Tensor,  # [M, N]
    bias: Tensor | None,
) -> None:
    """Write x weightᵀ + bias, with the weights of `levels` rounded to the dtype of x."""
    (tokens, channels), (rows, width) = x.shape, codes.shape
    groups, height = 1 if scale is None else scale.shape[1], _height(tokens)
    launch(
        _few_floats,
        (-(-tokens // height), -(-rows // BN)),
        **{"x": x, "codes": codes, "table": table, "scale": scale, "zero": zero, "y": y, "bias": bias},
        **{"tokens": tokens, "rows": rows, "channels": channels, "width": width, "groups": groups},
        **{"group": channels // groups, "x_stride": x.stride(0), "BM": height, "BN": BN},
        **{"QUADS": QUADS, "BITS": bits},
        **{"TABLE": table is not None, "ZERO": zero is not None, "BIAS": bias is not None},
        **{"HALF": LANGUAGE[x.dtype], "MATMUL": multiplied(x.dtype)},
        num_warps=4,
    )


def _height(tokens: int) -> int:
    return min(64, max(16, power_of_two(tokens)))
