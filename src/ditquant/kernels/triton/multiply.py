"""INT8 codes x INT8 weights with INT32 sums on tensor cores, scales and epilogue in the same kernel."""

import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.epilogue import finish
from ditquant.kernels.triton.launch import Config, bucket, choose, launch

DEPTH = 128  # both sides are filled with zeros to a multiple of this many channels
CONFIGS: list[Config] = [
    {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 3},
    {"BM": 128, "BN": 256, "BK": 128, "num_warps": 8, "num_stages": 3},
    {"BM": 256, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 3},
    {"BM": 128, "BN": 128, "BK": 128, "num_warps": 4, "num_stages": 4},
    {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 4},
    {"BM": 128, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 4},
    {"BM": 64, "BN": 128, "BK": 128, "num_warps": 4, "num_stages": 4},
    {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},
]


@triton.jit
def place(tokens, rows, BM: tl.constexpr, BN: tl.constexpr):
    """Return the tile of this program: neighbours share rows of weights, which then stay in the L2 cache."""
    down, across = tl.cdiv(tokens, BM), tl.cdiv(rows, BN)
    band = 8 * across
    first = tl.program_id(0) // band * 8
    height = tl.minimum(down - first, 8)
    inside = tl.program_id(0) % band
    return first + inside % height, inside // height


@triton.jit(do_not_specialize=["tokens", "tokens_per_gate"])
def _multiply(
    a, b, y, scale, zero, sums, row_scale, bias, gate, residual, tokens, rows, depth, tokens_per_gate,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ZERO: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    down, across = place(tokens, rows, BM, BN)
    token, row, k = down * BM + tl.arange(0, BM), across * BN + tl.arange(0, BN), tl.arange(0, BK)
    left = a + (token % tokens).to(tl.int64)[:, None] * depth + k[None, :]
    right = b + (row % rows).to(tl.int64)[None, :] * depth + k[:, None]
    total = tl.zeros((BM, BN), dtype=tl.int32)
    for _ in range(0, depth, BK):
        total = tl.dot(tl.load(left), tl.load(right), total, out_dtype=tl.int32)
        left += BK
        right += BK
    if ZERO:
        z = tl.load(zero + token, mask=token < tokens, other=0)
        total -= z[:, None] * tl.load(sums + row, mask=row < rows, other=0)[None, :]
    out = total.to(tl.float32) * tl.load(scale + token, mask=token < tokens, other=0.0)[:, None]
    out *= tl.load(row_scale + row, mask=row < rows, other=0.0)[None, :]
    mask = (token < tokens)[:, None] & (row < rows)[None, :]
    finish(out, y, bias, gate, residual, token, row, mask, rows, tokens_per_gate, BIAS, GELU, GATE)


def multiply(
    values: Tensor,  # int8 [M, Kp]
    scale: Tensor,  # [1, M]
    zero: Tensor | None,  # int32 [1, M]
    weight: Tensor,  # int8 [N, Kp]
    row_scale: Tensor,  # [N]
    sums: Tensor | None,  # int32 [N], with a zero point
    y: Tensor,  # [M, N]
    bias: Tensor | None = None,
    gelu: bool = False,
    gate: Tensor | None = None,  # [B, N], each for M / B tokens
    residual: Tensor | None = None,  # [M, N]
) -> None:
    """Write residual + gate * gelu(scale * row_scale * (values - zero) weightᵀ + bias)."""
    (tokens, depth), rows = values.shape, weight.shape[0]

    def run(config: Config) -> None:
        launch(
            _multiply,
            (-(-tokens // config["BM"]) * -(-rows // config["BN"]),),
            **{"a": values, "b": weight, "y": y, "scale": scale, "zero": zero, "sums": sums, "row_scale": row_scale},
            **{"bias": bias, "gate": gate, "residual": residual, "tokens": tokens, "rows": rows, "depth": depth},
            tokens_per_gate=tokens if gate is None else tokens // gate.shape[0],
            **{"ZERO": zero is not None, "BIAS": bias is not None, "GELU": gelu, "GATE": gate is not None},
            **config,
        )

    run(choose(("multiply", bucket(tokens), rows, depth, values.device.index), CONFIGS, run))
