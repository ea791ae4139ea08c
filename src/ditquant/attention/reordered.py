"""Attention with a token order per head, a static mask of tiles and quantized products (PAROAttention, section 3)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ditquant import kernels
from ditquant.attention.by_tiles import attend_compiled, use_tiles
from ditquant.attention.grid import ORDERS, TokenGrid
from ditquant.attention.rounding import check_bits
from ditquant.attention.seen import check_finite
from ditquant.attention.stripes import choose_kernel
from ditquant.errors import DitQuantError
from ditquant.kernels.report import report


def attend(
    q: Float[Tensor, "B H S D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    *,
    grid: TokenGrid,
    order: Int[Tensor, " H"],
    mask: Bool[Tensor, "H T T"] | None = None,
    qk_bits: int | None = None,
    pv_bits: int | None = None,
    name: str = "attention",
) -> Float[Tensor, "B H S D"]:
    """Reorder the tokens of every head, attend over the kept tiles, and put the output back in the tokens' own order.

    q, k and v come with their positions encoded. The softmax runs over the kept tiles of 64x64, renormalized; tiles
    with text are always kept. Without mask and bits the result is dense attention. `name` is for errors.

    Raises:
        DitQuantError: shapes that do not belong together, a row of tiles of which none is kept, NaN or infinity.
    """
    _check_shapes(q, k, v, grid, order, name)
    check_bits(qk_bits, "qk_bits")
    check_bits(pv_bits, "pv_bits")
    check_finite({"q": q, "k": k, "v": v}, name)
    keep = None if mask is None else kept_tiles(mask, grid, q.shape[1], name).to(q.device)
    index = grid.indices(order)
    if keep is None and qk_bits is None and pv_bits is None:
        return kernels.attention(q, k, v)  # which the order does not change
    slow = kernels.triton.why_not_attend(q)
    if slow is None:
        report("attention over tiles by the Triton kernels")
        return kernels.triton.attend_triton(q, k, v, index.to(q.device), keep, qk_bits, pv_bits)
    if q.device.type == "cuda":
        report("attention over tiles by torch", slow)
    if q.device.type == "cpu" and use_tiles(q, k, v, qk_bits, pv_bits):
        return attend_compiled(q, k, v, index, keep, qk_bits, pv_bits)
    index = index.to(q.device)
    heads = torch.arange(q.shape[1], device=q.device)[:, None]
    kernel = choose_kernel(q.device.type, mask is not None)
    reordered = kernel(*(x[:, heads, index] for x in (q, k, v)), keep, qk_bits, pv_bits)
    out = torch.empty_like(reordered)
    out[:, heads, index] = reordered
    return out


def kept_tiles(mask: Bool[Tensor, "H T T"], grid: TokenGrid, heads: int, name: str) -> Bool[Tensor, "H T T"]:
    """Return the mask with the tiles of text in it.

    Raises:
        DitQuantError: another shape or dtype, or a row that keeps nothing.
    """
    shape = (heads, grid.tiles, grid.tiles)
    if mask.dtype != torch.bool or mask.shape != shape:
        raise DitQuantError(f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}, needed is torch.bool {shape}.")
    keep = mask | grid.text_tiles().to(mask.device)
    empty = ~keep.any(-1)
    if empty.any():
        head, row = empty.nonzero()[0].tolist()
        raise DitQuantError(
            f"head {head} of {name} keeps no tile in row {row} of tiles. Every row must keep at least one."
        )
    return keep


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, order: Tensor, name: str) -> None:
    if q.ndim != 4 or k.shape != q.shape or v.shape != q.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise DitQuantError(f"q, k and v of {name} have the shapes {shapes}. All must be [batch, heads, tokens, size].")
    grid.check(q.shape[-2], name)
    if order.shape != (q.shape[1],) or order.is_floating_point():
        raise DitQuantError(
            f"the orders of {name} are {order.dtype} {tuple(order.shape)}, "
            f"needed is one index into {', '.join(ORDERS)} for each of its {q.shape[1]} heads."
        )
