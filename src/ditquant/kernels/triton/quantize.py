"""Smooth tokens and round them to codes, with a scale for every token or every group of its channels."""

import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.launch import launch, power_of_two
from ditquant.kernels.triton.scales import to_codes, token_scale

TILE = 4096


@triton.jit(do_not_specialize=["tokens"])
def _quantize(
    x, factor, values, scale, zero, tokens, x_stride, y_stride, group, part, gap, clip,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, FACTOR: tl.constexpr, STEPS: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = tl.arange(0, GROUP)
    channel = tl.program_id(1) * group + inside
    mask = (token < tokens)[:, None] & (inside < group)[None, :]
    row = token.to(tl.int64)[:, None]
    value = tl.load(x + row * x_stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    if FACTOR:
        value *= tl.load(factor + channel, mask=inside < group, other=0.0).to(tl.float32)[None, :]
    s, z = token_scale(value, clip, STEPS, SYMMETRIC)
    codes = to_codes(value, s, z, STEPS, SYMMETRIC).to(tl.int8)
    place = channel + (channel // part) * gap
    tl.store(values + row * y_stride + place[None, :], codes, mask=mask)
    each = tl.program_id(1).to(tl.int64) * tokens + token
    tl.store(scale + each, s, mask=token < tokens)
    if not SYMMETRIC:
        tl.store(zero + each, z.to(tl.int32), mask=token < tokens)


def quantize(
    x: Tensor,  # [M, K]
    factor: Tensor | None,  # bfloat16 [K]
    values: Tensor,  # int8 [M, >= K]
    scale: Tensor,  # [K / group, M]
    zero: Tensor | None,
    group: int,
    part: int,
    gap: int,
    bits: int,
    clip: float,
) -> None:
    """Write codes and scales; channel k goes to k + (k // part) * gap."""
    tokens, channels = x.shape
    wide = power_of_two(group)
    together = max(1, TILE // wide)
    launch(
        _quantize,
        (-(-tokens // together), channels // group),
        **{"x": x, "factor": factor, "values": values, "scale": scale, "zero": zero, "tokens": tokens},
        **{"x_stride": x.stride(0), "y_stride": values.stride(0), "group": group, "part": part, "gap": gap},
        **{"clip": clip, "GROUP": wide, "TOKENS": together, "FACTOR": factor is not None},
        **{"STEPS": 2 ** (bits - 1), "SYMMETRIC": zero is None},
        num_warps=4 if together * wide <= TILE else 8,
    )
