"""Scaled dot product attention in bfloat16 by the compiled kernels."""

import ctypes
import math

import torch
from torch import Tensor

from ditquant.kernels.cpu.library import library, pointer, why_not_attention

MAX_WIDTH = 512


@torch.library.custom_op("ditquant::attention_bfloat16", mutates_args=(), device_types="cpu")
def attention_bfloat16(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(q kᵀ scale + bias) v for bfloat16 [B, H, S, D], sums in float32; tokens of the result lie together.

    `bias` is one number a key, of a shape that expands to [B, H, 1, keys].
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    (batch, heads, queries, width), keys = q.shape, k.shape[2]
    if bias is not None:
        bias = bias.to(torch.float32).expand(batch, heads, 1, keys).contiguous()
    y = _empty(q)
    strides = [stride for x in (q, k, v, y) for stride in x.stride()[:3]]
    library().ditquant_attention(
        *(q.data_ptr(), k.data_ptr(), v.data_ptr(), pointer(bias), y.data_ptr()),
        (ctypes.c_int64 * len(strides))(*strides),
        *(batch, heads, queries, keys, width, scale, torch.get_num_threads()),
    )
    return y


@attention_bfloat16.register_fake
def _(q, k, v, bias, scale):
    return _empty(q)


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


def scale_of(q: Tensor, scale: float | None) -> float:
    """Return the scale that is meant by None."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale
