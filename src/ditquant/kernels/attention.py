"""Scaled dot product attention by the fastest kernel that takes it, with the parameters that torch gives it."""

from torch import Tensor
from torch.nn import functional as F

from ditquant.kernels.cpu.attention import attention_bfloat16, scale_of, why_not_bfloat16
from ditquant.kernels.report import report

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
    report("attention by torch", reason)
    return _TORCH(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
