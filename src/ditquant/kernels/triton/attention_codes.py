"""Queries, keys and values in the order of their head, as codes: Q and K by token, V by tile and channel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.launch import launch
from ditquant.kernels.triton.scales import nearest

TILE = 64


@triton.jit
def _rows(x, index, mean, tokens, channels, heads, head, tile,
          TILE: tl.constexpr, WIDTH: tl.constexpr, MEAN: tl.constexpr):  # fmt: skip
    """Load the rows of a tile in the head's order, without the mean; zeros outside."""
    row, d = tile * TILE + tl.arange(0, TILE), tl.arange(0, WIDTH)
    source = tl.load(index + (head % heads) * tokens + row, mask=row < tokens, other=0)
    mask = (row < tokens)[:, None] & (d < channels)[None, :]
    place = (head.to(tl.int64) * tokens + source)[:, None] * channels + d[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if MEAN:
        value -= tl.load(mean + head * channels + d, mask=d < channels, other=0.0)[None, :]
        value = tl.where(mask, value, 0.0)
    return value


@triton.jit
def _by_token(x, index, mean, codes, scale, tokens, channels, heads, tiles, factor,
              TILE: tl.constexpr, WIDTH: tl.constexpr, MEAN: tl.constexpr, STEPS: tl.constexpr):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    value = _rows(x, index, mean, tokens, channels, heads, head, tile, TILE, WIDTH, MEAN)
    s = tl.maximum(tl.max(tl.abs(value), 1) / (STEPS - 1), 1.1754943508222875e-38)
    row = (head.to(tl.int64) * tiles + tile) * TILE + tl.arange(0, TILE)
    tl.store(
        codes + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], nearest(value * (1.0 / s)[:, None]).to(tl.int8)
    )
    tl.store(scale + row, s * factor)


@triton.jit
def _by_tile_and_channel(x, index, levels, codes, sums, tokens, channels, heads, tiles,
                         TILE: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    value = _rows(x, index, x, tokens, channels, heads, head, tile, TILE, WIDTH, False)
    row, d = tile * TILE + tl.arange(0, TILE), tl.arange(0, WIDTH)
    there = (row < tokens)[:, None]
    low = tl.min(tl.where(there, value, float("inf")), 0) * 0.5
    high = tl.max(tl.where(there, value, float("-inf")), 0) * 0.5
    middle = high + low
    s = tl.maximum((high - low) / (STEPS - 1), 1.1754943508222875e-38)
    found = tl.where(there, nearest((value - middle[None, :]) * (1.0 / s)[None, :]), 0.0)
    tl.store(codes + (head.to(tl.int64) * WIDTH + d)[None, :] * (tiles * TILE) + row[:, None], found.to(tl.int8))
    place = (head.to(tl.int64) * tiles + tile) * WIDTH + d
    tl.store(sums + place, tl.sum(found.to(tl.int32), 0))
    tl.store(levels + place * 2, s)
    tl.store(levels + place * 2 + 1, middle)


def codes_by_token(
    x: Tensor,  # [B, H, S, D] contiguous
    index: Tensor,  # int32 [H, S]
    mean: Tensor | None,  # float32 [B, H, 1, D]
    bits: int,
    width: int,
    factor: float,
) -> tuple[Tensor, Tensor]:  # int8 [B H, T 64, width], float32 [B H, T 64]
    """Return x - mean in codes of `bits` bits and its scales times `factor`."""
    batch, heads, tokens, channels = x.shape
    tiles = -(-tokens // TILE)
    codes = torch.empty(batch * heads, tiles * TILE, width, dtype=torch.int8, device=x.device)
    scale = torch.empty(batch * heads, tiles * TILE, dtype=torch.float32, device=x.device)
    launch(
        _by_token,
        (tiles, batch * heads),
        **{"x": x, "index": index, "mean": mean, "codes": codes, "scale": scale, "tokens": tokens},
        **{"channels": channels, "heads": heads, "tiles": tiles, "factor": factor},
        **{"TILE": TILE, "WIDTH": width, "MEAN": mean is not None, "STEPS": 2 ** (bits - 1)},
        num_warps=4,
    )
    return codes, scale


def codes_by_tile_and_channel(
    v: Tensor,  # [B, H, S, D] contiguous
    index: Tensor,  # int32 [H, S]
    bits: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # int8 [B H, width, T 64], float32 [B H, T, width, 2], int32 [B H, T, width]
    """Return codes of v, transposed as tensor cores want it, scale and middle of each tile, and its sums of codes."""
    batch, heads, tokens, channels = v.shape
    tiles = -(-tokens // TILE)
    codes = torch.empty(batch * heads, width, tiles * TILE, dtype=torch.int8, device=v.device)
    levels = torch.empty(batch * heads, tiles, width, 2, dtype=torch.float32, device=v.device)
    sums = torch.empty(batch * heads, tiles, width, dtype=torch.int32, device=v.device)
    launch(
        _by_tile_and_channel,
        (tiles, batch * heads),
        **{"x": v, "index": index, "levels": levels, "codes": codes, "sums": sums, "tokens": tokens},
        **{"channels": channels, "heads": heads, "tiles": tiles},
        **{"TILE": TILE, "WIDTH": width, "STEPS": 2 ** (bits - 1)},
        num_warps=4,
    )
    return codes, levels, sums
