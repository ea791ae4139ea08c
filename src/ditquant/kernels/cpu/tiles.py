"""Sum, maximum and small entries of every tile of an attention map, by the compiled kernels."""

import torch
from torch import Tensor

from ditquant.kernels.cpu.library import library, pointer, why_not_wide


def why_not_map_tiles(q: Tensor) -> str | None:
    """Say why the compiled kernel cannot be taken; None if it can."""
    if (reason := why_not_wide()) is not None:
        return reason
    if q.device.type != "cpu" or q.dtype == torch.float64 or q.numel() == 0:
        return "the compiled kernel takes float32 and below on the CPU"
    return None


def map_tiles(q: Tensor, k: Tensor, stripes: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce softmax(q kᵀ scale) of [N, S, D], in float32: sums, maxima, counts below eps, [N, stripes, tiles] each."""
    q, k = (x.to(torch.float32).contiguous() for x in (q, k))
    heads, tokens, width = q.shape
    shape, stripes = (heads, len(stripes), -(-tokens // 64)), stripes.to(torch.int64).contiguous()
    total, largest = torch.empty(shape), torch.empty(shape)
    small = torch.empty(shape, dtype=torch.int32)
    library().ditquant_tiles(
        *(pointer(q), pointer(k), pointer(stripes), len(stripes), heads, tokens, width, scale, eps),
        *(pointer(total), pointer(largest), pointer(small), torch.get_num_threads()),
    )
    return total, largest, small
