"""The group identity of Q-DiT (arXiv 2406.17343) on tensor cores: INT32 sums of a group, scaled, added in float32."""

import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.epilogue import finish
from ditquant.kernels.triton.launch import Config, bucket, choose, launch
from ditquant.kernels.triton.multiply import place

CONFIGS: list[Config] = [
    {"BM": 128, "BN": 128, "num_warps": 8, "num_stages": 3},
    {"BM": 64, "BN": 128, "num_warps": 4, "num_stages": 4},
    {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 4},
]


@triton.jit(do_not_specialize=["tokens"])
def _multiply_groups(
    a, b, y, scale, zero, sums, row_scale, bias, tokens, rows, depth, groups, steps, a_steps, b_steps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ZERO: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    down, across = place(tokens, rows, BM, BN)
    token, row, k = down * BM + tl.arange(0, BM), across * BN + tl.arange(0, BN), tl.arange(0, BK)
    left = a + (token % tokens).to(tl.int64)[:, None] * depth + k[None, :]
    right = b + (row % rows).to(tl.int64)[None, :] * depth + k[:, None]
    out = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, groups * steps):
        part = tl.dot(tl.load(left), tl.load(right), out_dtype=tl.int32)
        of_token = (step // a_steps).to(tl.int64) * tokens + token
        if ZERO:  # all of a group's sum goes with its first step
            z = tl.load(zero + of_token, mask=(token < tokens) & (step % steps == 0), other=0)
            s = tl.load(sums + (step // steps).to(tl.int64) * rows + row, mask=row < rows, other=0)
            part -= z[:, None] * s[None, :]
        scaled = part.to(tl.float32) * tl.load(scale + of_token, mask=token < tokens, other=0.0)[:, None]
        of_row = (step // b_steps).to(tl.int64) * rows + row
        out += scaled * tl.load(row_scale + of_row, mask=row < rows, other=0.0)[None, :]
        left += BK
        right += BK
    mask = (token < tokens)[:, None] & (row < rows)[None, :]
    finish(out, y, bias, None, None, token, row, mask, rows, tokens, BIAS, False, False)


def multiply_groups(
    values: Tensor,  # int8 [M, >= groups * part]
    scale: Tensor,  # [Ga, M]
    zero: Tensor | None,  # int32 [Ga, M]
    weight: Tensor,  # int8 [N, >= groups * part]
    row_scale: Tensor,  # [Gw, N]
    sums: Tensor | None,  # int32 [G, N], with zero points
    groups: int,
    part: int,
    y: Tensor,  # [M, N]
    bias: Tensor | None = None,
) -> None:
    """Write Σ over the groups of scale * row_scale * (values - zero) weightᵀ, plus bias; `part` is a multiple of 32."""
    (tokens, depth), rows = values.shape, weight.shape[0]
    step = min(128, part & -part)  # the largest power of two that divides a part
    steps = part // step

    def run(config: Config) -> None:
        launch(
            _multiply_groups,
            (-(-tokens // config["BM"]) * -(-rows // config["BN"]),),
            **{"a": values, "b": weight, "y": y, "scale": scale, "zero": zero, "sums": sums, "row_scale": row_scale},
            **{"bias": bias, "tokens": tokens, "rows": rows, "depth": depth, "groups": groups, "steps": steps},
            **{"a_steps": steps * groups // scale.shape[0], "b_steps": steps * groups // row_scale.shape[0]},
            **{"BK": step, "ZERO": zero is not None, "BIAS": bias is not None},
            **config,
        )

    run(choose(("multiply_groups", bucket(tokens), rows, depth, step, values.device.index), CONFIGS, run))
