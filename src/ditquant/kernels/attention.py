"""Scaled dot product attention by the fastest kernel that takes it, with the parameters that torch gives it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ditquant.kernels.cpu.attention import attention_bfloat16, scale_of, why_not_bfloat16
from ditquant.kernels.report import report

# there torch's attention in float16 takes 1.7 to 2.3 times that of float32 copies; in bfloat16 it is as fast as these
FLOAT16_IS_SLOW = torch.backends.cpu.get_cpu_capability() == "AVX2"
_TORCH = F.scaled_dot_product_attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend as `torch.nn.functional.scaled_dot_product_attention` does, [B, H, S, D]."""
    plain = dropout_p == 0 and not is_causal and not enable_gqa and (scale is None or scale > 0)
    reason = why_not_bfloat16(query, key, value, attn_mask) if plain else "dropout, causal and grouped attention"
    if reason is None:
        report("attention by the compiled CPU kernels")
        return attention_bfloat16(query, key, value, attn_mask, scale_of(query, scale))
    if FLOAT16_IS_SLOW and query.device.type == "cpu" and query.dtype == torch.float16:
        report("attention by torch in float32 copies", f"{reason}, and float16 is slow on this CPU")
        bias = attn_mask.float() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
        copies = (query.float(), key.float(), value.float(), bias, dropout_p, is_causal)
        return _TORCH(*copies, scale=scale, enable_gqa=enable_gqa).to(query.dtype)
    report("attention by torch", reason)
    return _TORCH(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
