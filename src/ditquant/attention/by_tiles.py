"""The compiled attention over tiles: tokens are reordered while they are packed, tiles left out are never touched."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ditquant.kernels.cpu.attention import attention_tiles, why_not_tiles
from ditquant.kernels.report import report

FLOAT = 16  # bits of a product that is not one of integers


def use_tiles(q: Tensor, k: Tensor, v: Tensor, qk_bits: int | None, pv_bits: int | None) -> bool:
    """Say whether the compiled kernel takes these tensors; the log says once which way is taken, and why."""
    reason = why_not_tiles(q, k, v, qk_bits, pv_bits)
    if reason is None:
        report("attention over tiles by the compiled CPU kernels")
    else:
        report("attention over tiles by torch", reason)
    return reason is None


def attend_compiled(
    q: Float[Tensor, "B H S D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    order: Int[Tensor, "H S"],
    keep: Bool[Tensor, "H T T"] | None,
    qk_bits: int | None,
    pv_bits: int | None,
) -> Float[Tensor, "B H S D"]:
    """Attend as `stripes.attend_reference` does to reordered tokens; takes and returns them in their own order."""
    tiles, starts = (None, None) if keep is None else tile_lists(keep)
    return attention_tiles(q, k, v, order.int(), tiles, starts, qk_bits or FLOAT, pv_bits or FLOAT)


def tile_lists(keep: Bool[Tensor, "H T T"]) -> tuple[Int[Tensor, " kept"], Int[Tensor, " rows"]]:
    """Return the kept tiles of all rows one after another, int32, and where those of each row start, int64."""
    rows = keep.flatten(0, 1)
    starts = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(rows.sum(-1), 0, out=starts[1:])
    return rows.nonzero(as_tuple=True)[1].int(), starts
