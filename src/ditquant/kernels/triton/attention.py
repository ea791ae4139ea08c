"""Attention over lists of kept tiles of 64x64 with an online softmax, in integers or floats (PAROAttention, section 3).

P is rounded before it is normalized; as each row of a tile has its own scale, that gives the codes of the reference.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ditquant.kernels.triton.attention_codes import TILE, codes_by_tile_and_channel, codes_by_token
from ditquant.kernels.triton.launch import LANGUAGE, Config, bucket, choose, launch, multiplied, power_of_two
from ditquant.kernels.triton.scales import nearest

CONFIGS: list[Config] = [{"num_warps": 4, "num_stages": stages} for stages in (2, 3)]


@triton.jit
def _attend(
    q, k, v, q_scale, k_scale, v_levels, v_sums, index, columns, counts, y, tokens, channels, heads, tiles, factor,
    TILE: tl.constexpr, WIDTH: tl.constexpr, SPARSE: tl.constexpr, QK: tl.constexpr, LEVELS: tl.constexpr,
    HALF: tl.constexpr, MATMUL: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    inside, d = tl.arange(0, TILE), tl.arange(0, WIDTH)
    row = tile * TILE + inside
    padded = tiles * TILE
    base = head.to(tl.int64)
    if QK:
        query = tl.load(q + (base * padded + row)[:, None] * WIDTH + d[None, :])
        row_factor = tl.load(q_scale + base * padded + row)
    else:
        of_row = (row < tokens)[:, None] & (d < channels)[None, :]
        query = tl.load(q + (base * tokens + row)[:, None] * channels + d[None, :], mask=of_row, other=0.0).to(MATMUL)
    largest = tl.full((TILE,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((TILE,), dtype=tl.float32)
    out = tl.zeros((TILE, WIDTH), dtype=tl.float32)
    kept = tiles
    if SPARSE:
        list_of = columns + ((head % heads) * tiles + tile).to(tl.int64) * tiles
        kept = tl.load(counts + (head % heads) * tiles + tile)
    for j in range(0, kept):
        column = j
        if SPARSE:
            column = tl.load(list_of + j)
        near = column * TILE + inside
        if QK:
            key = tl.load(k + (base * padded + near)[None, :] * WIDTH + d[:, None])
            scores = tl.dot(query, key, out_dtype=tl.int32).to(tl.float32)
            scores *= row_factor[:, None] * tl.load(k_scale + base * padded + near)[None, :]
        else:
            valid = (near < tokens)[None, :] & (d < channels)[:, None]
            key = tl.load(k + (base * tokens + near)[None, :] * channels + d[:, None], mask=valid, other=0.0)
            scores = tl.dot(query, key.to(MATMUL), input_precision="ieee") * factor
        scores = tl.where((near < tokens)[None, :], scores, float("-inf"))
        here = tl.max(scores, 1)
        grown = tl.maximum(largest, here)
        shrink = tl.exp2(largest - grown)
        if LEVELS > 0:
            p = tl.exp2(scores - here[:, None])
            share = tl.exp2(here - grown)
            mass = tl.sum(p, 1) * share
            total = total * shrink + mass
            middle = (LEVELS + 1) // 2  # INT8 has a sign, the codes of P have none
            codes = (nearest(p * LEVELS) - middle).to(tl.int8)
            value = tl.load(v + (base * WIDTH + d)[None, :] * padded + near[:, None])
            found = tl.dot(codes, value, out_dtype=tl.int32)
            found += middle * tl.load(v_sums + (base * tiles + column) * WIDTH + d)[None, :]
            level = ((base * tiles + column) * WIDTH + d) * 2
            found = found.to(tl.float32) * (share * (1.0 / LEVELS))[:, None] * tl.load(v_levels + level)[None, :]
            out = out * shrink[:, None] + found + mass[:, None] * tl.load(v_levels + level + 1)[None, :]
        else:
            p = tl.exp2(scores - grown[:, None])
            total = total * shrink + tl.sum(p, 1)
            valid = (near < tokens)[:, None] & (d < channels)[None, :]
            value = tl.load(v + (base * tokens + near)[:, None] * channels + d[None, :], mask=valid, other=0.0)
            out = tl.dot(p.to(HALF).to(MATMUL), value.to(MATMUL), out * shrink[:, None], input_precision="ieee")
        largest = grown
    out = out / total[:, None]
    back = tl.load(index + (head % heads) * tokens + row, mask=row < tokens, other=0)
    place = (base * tokens + back)[:, None] * channels + d[None, :]
    tl.store(y + place, out, mask=(row < tokens)[:, None] & (d < channels)[None, :])


def attend(
    q: Tensor,  # [B, H, S, D]
    k: Tensor,
    v: Tensor,
    index: Tensor,  # int32 [H, S]
    columns: Tensor | None,  # int32 [H, T, T]
    counts: Tensor | None,  # int32 [H, T]
    qk_bits: int | None,
    pv_bits: int | None,
) -> Tensor:
    """Attend in the order of every head over the tiles that are listed; the result is in the tokens' own order."""
    batch, heads, tokens, channels = q.shape
    q, k, v = (x.contiguous() for x in (q, k, v))
    width, tiles = power_of_two(max(channels, 32)), -(-tokens // TILE)
    factor = channels**-0.5 / math.log(2)
    y = torch.empty_like(q)
    scales: dict[str, Tensor | None] = dict.fromkeys(("q_scale", "k_scale", "v_levels", "v_sums"))
    if qk_bits is not None:
        mean = k.mean(-2, keepdim=True, dtype=torch.float32)
        q, scales["q_scale"] = codes_by_token(q, index, None, qk_bits, width, factor)
        k, scales["k_scale"] = codes_by_token(k, index, mean, qk_bits, width, 1.0)
    else:
        q, k = (_ordered(x, index) for x in (q, k))
    if pv_bits is not None:
        v, scales["v_levels"], scales["v_sums"] = codes_by_tile_and_channel(v, index, pv_bits, width)
    else:
        v = _ordered(v, index)

    def run(config: Config) -> None:
        launch(
            _attend,
            (tiles, batch * heads),
            **{"q": q, "k": k, "v": v, **scales, "index": index, "columns": columns, "counts": counts, "y": y},
            **{"tokens": tokens, "channels": channels, "heads": heads, "tiles": tiles, "factor": factor},
            **{"TILE": TILE, "WIDTH": width, "SPARSE": columns is not None, "QK": qk_bits is not None},
            **{"LEVELS": 0 if pv_bits is None else 2**pv_bits - 1, "HALF": LANGUAGE[y.dtype]},
            MATMUL=multiplied(y.dtype),
            **config,
        )

    key = ("attention", bucket(tokens), width, columns is not None, qk_bits, pv_bits, y.dtype, y.device.index)
    run(choose(key, CONFIGS, run))
    return y


def _ordered(x: Tensor, index: Tensor) -> Tensor:
    heads = torch.arange(x.shape[1], device=x.device)[:, None]
    return x[:, heads, index.long()].contiguous()
