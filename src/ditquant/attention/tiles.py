"""What the attention map looks like tile by tile, without ever holding the map: stripes of 64 rows, reduced at once.

Differs from the paper's outline: a stripe has all of its columns and so its own softmax; no pass for the row
log-sum-exp goes before, and Q Kᵀ is computed once instead of twice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ditquant.attention.grid import TILE
from ditquant.kernels.cpu.tiles import map_tiles, why_not_map_tiles


@dataclass(frozen=True)
class TileStats:
    """Of the softmax of each of N heads, for R rows of T tiles: sum, maximum, entries below eps, all entries."""

    total: Float[Tensor, "N R T"]
    largest: Float[Tensor, "N R T"]
    small: Int[Tensor, "N R T"]
    entries: Int[Tensor, "R T"]


@torch.no_grad()
def tile_stats(
    q: Float[Tensor, "N S D"], k: Float[Tensor, "N S D"], eps: float, stripes: Int[Tensor, " R"] | None = None
) -> TileStats:
    """Reduce the attention map of reordered tokens; `stripes` are the rows of tiles to look at, all if None.

    Computed in float32, in float64 for float64. Memory: N * 64 * S numbers at a time, by the compiled kernel 6 * S.
    """
    tokens = q.shape[-2]
    widths = torch.full((-(-tokens // TILE),), TILE)
    widths[-1] = tokens - TILE * (len(widths) - 1)
    stripes = torch.arange(len(widths)) if stripes is None else stripes
    entries = (widths[stripes][:, None] * widths).to(q.device)
    if why_not_map_tiles(q) is None:
        return TileStats(*map_tiles(q, k, stripes, q.shape[-1] ** -0.5, eps), entries)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k = q.to(wide) * q.shape[-1] ** -0.5, k.to(wide)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for i in stripes.tolist():
        p = (q[:, i * TILE : (i + 1) * TILE] @ k.mT).softmax(-1)
        tiles = _split(p)
        found.append((tiles.sum(-1).sum(1), tiles.amax(-1).amax(1), _split(p < eps).sum(-1).sum(1)))
    total, largest, small = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    return TileStats(total, largest, small, entries)


def _split(p: Tensor) -> Tensor:
    """Split the columns into tiles; what fills the last one is zero, and counts neither as mass nor as small."""
    return F.pad(p, (0, -p.shape[-1] % TILE)).unflatten(-1, (-1, TILE))
