"""Scaled dot product attention by the compiled kernels: in bfloat16, and over kept tiles of reordered tokens."""

import ctypes
import math

import torch
from torch import Tensor

from ditquant.kernels.cpu.library import DTYPES, library, pointer, why_not_attention

MAX_WIDTH = 512


@torch.library.custom_op("ditquant::attention_bfloat16", mutates_args=(), device_types="cpu")
def attention_bfloat16(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(q kᵀ scale + bias) v for bfloat16 [B, H, S, D], sums in float32; tokens of the result lie together.

    `bias` is one number a key, of a shape that expands to [B, H, 1, keys].
    """
    if bias is not None:
        bias = bias.to(torch.float32).expand(*k.shape[:2], 1, k.shape[2]).contiguous()
    return _call(q, k, v, bias, None, None, None, scale, 16, 16)


@attention_bfloat16.register_fake
def _(q, k, v, bias, scale):
    return _empty(q)


@torch.library.custom_op("ditquant::attention_tiles", mutates_args=(), device_types="cpu")
def attention_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    order: Tensor,
    tiles: Tensor | None,
    starts: Tensor | None,
    qk_bits: int,
    pv_bits: int,
) -> Tensor:
    """Attend over the kept tiles of 64x64 of reordered tokens, [B, H, S, D]; the result is in the tokens' own order.

    `order` int32 [H, S] says which token stands where. `tiles` int32 holds the kept tiles of keys, rising, of each
    tile of queries of each head, from `starts` int64 [H * T + 1] on; None keeps all. A product of 16 bits is one of
    bfloat16, below it is one of integers: Q and K less its mean with a scale a token, P with one for each
    row of a tile, V less the middle of its range with one for each tile and channel.
    """
    return _call(q, k, v, None, order, tiles, starts, scale_of(q, None), qk_bits, pv_bits)


@attention_tiles.register_fake
def _(q, k, v, order, tiles, starts, qk_bits, pv_bits):
    return _empty(q)


def _call(q, k, v, bias, order, tiles, starts, scale, qk_bits, pv_bits) -> Tensor:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    (batch, heads, queries, width), keys = q.shape, k.shape[2]
    y = _empty(q)
    strides = [stride for x in (q, k, v, y) for stride in x.stride()[:3]]
    library().ditquant_attention(
        *(q.data_ptr(), k.data_ptr(), v.data_ptr(), pointer(bias), y.data_ptr()),
        *((ctypes.c_int64 * len(strides))(*strides), pointer(order), pointer(tiles), pointer(starts)),
        *(batch, heads, queries, keys, width, scale, DTYPES[q.dtype], qk_bits, pv_bits, torch.get_num_threads()),
    )
    return y


def _empty(q: Tensor) -> Tensor:
    batch, heads, queries, width = q.shape
    return q.new_empty((batch, queries, heads, width)).transpose(1, 2)


def why_not_bfloat16(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str | None:
    """Say why the compiled attention cannot be taken; None if it can."""
    if (reason := why_not_attention()) is not None:
        return reason
    if any(x.dtype != torch.bfloat16 or x.device.type != "cpu" or x.ndim != 4 for x in (q, k, v)):
        return "the compiled attention takes bfloat16 [B, H, S, D] on the CPU"
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or not 0 < q.shape[3] == k.shape[3] <= MAX_WIDTH:
        return f"the compiled attention takes q, k and v of equal heads and widths, up to {MAX_WIDTH}"
    if q.numel() == 0 or k.numel() == 0:
        return "there are no tokens"
    if mask is not None and (not mask.is_floating_point() or mask.ndim != 4 or mask.shape[2] != 1):
        return "the compiled attention takes masks of one number a key"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "the compiled attention has no gradient"
    return None


def why_not_tiles(q: Tensor, k: Tensor, v: Tensor, qk_bits: int | None, pv_bits: int | None) -> str | None:
    """Say why the compiled attention over tiles cannot be taken; None if it can."""
    if (reason := why_not_attention()) is not None:
        return reason
    integers = qk_bits is not None and pv_bits is not None
    if any(x.device.type != "cpu" or x.dtype != q.dtype for x in (q, k, v)) or q.dtype not in DTYPES:
        return "the compiled attention takes float32, bfloat16 and float16 on the CPU"
    if not integers and q.dtype != torch.bfloat16:
        return "the compiled attention takes bfloat16, or both products in integers"
    if not 0 < q.shape[3] <= MAX_WIDTH or q.numel() == 0:
        return f"the compiled attention takes widths up to {MAX_WIDTH}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "the compiled attention has no gradient"
    return None


def scale_of(q: Tensor, scale: float | None) -> float:
    """Return the scale that is meant by None."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale
