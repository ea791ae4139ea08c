"""Packed codes -> floating-point weights, for layers whose activations are not quantized."""

import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.launch import launch
from ditquant.kernels.triton.words import code_of, four_codes

ROWS, QUADS = 8, 256


@triton.jit
def level(code, row, channel, mask, table, scale, zero, groups, group, BITS: tl.constexpr, TABLE: tl.constexpr,
          ZERO: tl.constexpr):  # fmt: skip
    """Return the float32 weights of codes [N, K] at `row` [N, 1] and `channel` [1, K]: a look-up, or affine."""
    if TABLE:
        found = tl.load(table + row * (1 << BITS) + code, mask=mask, other=0.0)
    else:
        place = row * groups + channel // group
        middle = 1 << (BITS - 1)
        if ZERO:
            middle = tl.load(zero + place, mask=mask, other=0).to(tl.int32)
        found = (code - middle).to(tl.float32) * tl.load(scale + place, mask=mask, other=0.0)
    return found


@triton.jit
def _levels(
    codes, table, scale, zero, y, rows, channels, width, groups, group,
    BITS: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr, TABLE: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    quad = (tl.program_id(1) * QUADS + tl.arange(0, QUADS))[None, :]
    word = four_codes(codes + row * width, quad, (row < rows) & (quad * 4 < channels), width, BITS)
    for i in tl.static_range(4):
        channel = quad * 4 + i
        mask = (row < rows) & (channel < channels)
        found = level(code_of(word, i, BITS), row, channel, mask, table, scale, zero, groups, group, BITS, TABLE, ZERO)
        tl.store(y + row * channels + channel, found, mask=mask)


def levels(
    codes: Tensor,  # [N, P]
    table: Tensor | None,  # float32 [N, V]
    scale: Tensor | None,  # float32 [N, G]
    zero: Tensor | None,  # uint8 [N, G]
    bits: int,
    weight: Tensor,  # [N, K]
) -> None:
    """Write the decoded weight in its dtype."""
    (rows, width), channels = codes.shape, weight.shape[1]
    groups = 1 if scale is None else scale.shape[1]
    launch(
        _levels,
        (-(-rows // ROWS), -(-channels // (4 * QUADS))),
        **{"codes": codes, "table": table, "scale": scale, "zero": zero, "y": weight, "rows": rows},
        **{"channels": channels, "width": width, "groups": groups, "group": channels // groups},
        **{"BITS": bits, "ROWS": ROWS, "QUADS": QUADS, "TABLE": table is not None, "ZERO": zero is not None},
        num_warps=4,
    )
