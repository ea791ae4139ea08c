"""Which attention the Triton kernels take, and how."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ditquant.kernels.triton.available import why_not
from ditquant.kernels.triton.ops import triton_attention
from ditquant.kernels.triton.tile_lists import tile_lists

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 128


def why_not_attend(q: Tensor) -> str | None:
    """Say why the Triton kernels cannot attend; None if they can."""
    if (reason := why_not(q.device)) is not None:
        return reason
    if q.dtype not in DTYPES:
        return f"the Triton kernels do not take {q.dtype}"
    if q.shape[-1] > MAX_CHANNELS:
        return f"the Triton kernels take heads of at most {MAX_CHANNELS} channels"
    if torch.is_grad_enabled() and q.requires_grad:
        return "the Triton kernels have no gradient"
    return "there are no tokens" if q.numel() == 0 else None


def attend_triton(
    q: Float[Tensor, "B H S D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    index: Int[Tensor, "H S"],
    keep: Bool[Tensor, "H T T"] | None,
    qk_bits: int | None,
    pv_bits: int | None,
) -> Float[Tensor, "B H S D"]:
    """Attend in the order of every head over its kept tiles; orders are followed on the way in and on the way out."""
    columns, counts = (None, None) if keep is None else tile_lists(keep)
    return triton_attention(q, k, v, index.to(torch.int32), columns, counts, qk_bits, pv_bits)
