"""Packed codes -> INT8 values of a whole weight, one pass; or -> floating-point weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.launch import launch, power_of_two
from ditquant.kernels.triton.words import code_of, four_codes

CHUNK = 1024  # channels of a program where nothing depends on them
TILE = 2048  # words of a program


@triton.jit
def _decode(
    codes, table, zero, y, sums, rows, channels, width, table_stride, zero_stride, zero_step, y_stride, chunk, gap,
    BITS: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr, TABLE: tl.constexpr, ZERO: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = tl.arange(0, QUADS)
    quad = tl.program_id(1) * chunk + inside
    mask = (row < rows)[:, None] & ((inside < chunk) & (quad * 4 < channels))[None, :]
    here = row.to(tl.int64)[:, None]
    word = four_codes(codes + here * width, quad[None, :], mask, width, BITS)
    packed = tl.zeros_like(word)
    total = tl.zeros_like(word).to(tl.int32)
    if ZERO:
        of_chunk = zero + here * zero_stride + tl.program_id(1) * zero_step
        middle = tl.load(of_chunk, mask=(row < rows)[:, None], other=0).to(tl.int32)
    for i in tl.static_range(4):
        code = code_of(word, i, BITS)
        if TABLE:
            value = tl.load(table + here * table_stride + code, mask=mask, other=0).to(tl.int32)
        elif ZERO:
            value = code - middle
        else:
            value = code - (1 << (BITS - 1))
        value = tl.where(mask & (quad * 4 + i < channels)[None, :], value, 0)
        packed |= (value & 255).to(tl.uint32) << (8 * i)
        total += value
    tl.store(
        y + here * y_stride + (quad + tl.program_id(1) * gap)[None, :], packed.to(tl.int32, bitcast=True), mask=mask
    )
    if SUMS:
        tl.store(sums + tl.program_id(1).to(tl.int64) * rows + row, tl.sum(total, 1), mask=row < rows)


def decode(
    codes: Tensor,  # [N, P]
    table: Tensor | None,  # int8 [R, V], R = N or 1
    zero: Tensor | None,  # uint8 [N, chunks] or [N, 1]
    bits: int,
    channels: int,
    values: Tensor,  # int8 [N, Kp], zeros where nothing is written
    sums: Tensor | None,  # int32 [chunks, N]
    chunk: int = CHUNK,
    gap: int = 0,
) -> None:
    """Write code -> table, code - zero point of the chunk, or code - 2^(bits-1), in this order of what is given.

    `chunk` and `gap` are multiples of 4; with a gap behind every chunk, `sums` are those of the chunk's values.
    """
    rows, width = codes.shape
    quads = power_of_two(chunk // 4)
    together = max(1, TILE // quads)
    launch(
        _decode,
        (-(-rows // together), -(-channels // chunk)),
        **{"codes": codes, "table": table, "zero": zero, "y": values.view(torch.int32), "sums": sums},
        **{"rows": rows, "channels": channels, "width": width},
        table_stride=0 if table is None or table.shape[0] == 1 else table.stride(0),
        zero_stride=0 if zero is None else zero.stride(0),
        zero_step=0 if zero is None or zero.shape[1] == 1 else 1,
        **{"y_stride": values.stride(0) // 4, "chunk": chunk // 4, "gap": gap // 4},
        **{"BITS": bits, "ROWS": together, "QUADS": quads},
        **{"TABLE": table is not None, "ZERO": zero is not None, "SUMS": sums is not None},
        num_warps=4,
    )
