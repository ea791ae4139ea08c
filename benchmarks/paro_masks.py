"""Attention by the rules of other methods, made on line from q, k and v: for `paro.py` alone.

SparseVideoGen (arXiv 2502.01776): every head is spatial or temporal, a band in the order FHW or HWF, whichever is
nearer to dense attention on 64 sampled queries. SpargeAttn (arXiv 2502.18137): tiles of Q and K are averaged, and those
with the largest softmax of the averages are kept; tiles whose keys are unlike each other are kept too.
Both are given a density. Tiles with text are always kept. Neither has dense steps here.
SageAttention (arXiv 2410.02367): Q in INT8 with a scale for 128 tokens, K less its mean with one for 64, P and V as
they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ditquant.attention import ORDERS, TILE, TokenGrid, attend

SAMPLED = 64
UNLIKE = 0.6  # mean cosine of the keys of a tile, below which SpargeAttn does not trust their average


def band(grid: TokenGrid, density: float) -> Tensor:
    """Keep the tiles nearest to the diagonal, [T, T]."""
    tiles = grid.tiles
    place = torch.arange(tiles)
    distance = (place[:, None] - place[None]).abs() - 2 * grid.text_tiles().long() * tiles
    keep = torch.zeros(tiles, tiles, dtype=torch.bool).flatten()
    keep[distance.flatten().argsort(stable=True)[: round(density * tiles * tiles)]] = True
    return keep.view(tiles, tiles) | torch.eye(tiles, dtype=torch.bool)


@dataclass
class SparseVideoGen:
    """Attention of one layer; the density is that of every head."""

    grid: TokenGrid
    density: float

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend sample by sample, as the choice of the heads is each sample's own."""
        return torch.cat([self._one(*(x[i : i + 1] for x in (q, k, v))) for i in range(len(q))])

    def _one(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = torch.randperm(self.grid.tokens, generator=torch.Generator().manual_seed(0))[:SAMPLED]
        mask = band(self.grid, self.density)
        scores = q[:, :, rows] @ k.mT * q.shape[-1] ** -0.5
        exact, errors = scores.softmax(-1) @ v, []
        for order in (ORDERS.index("FHW"), ORDERS.index("HWF")):
            tile = self.grid.inverse(order) // TILE
            kept = (mask | self.grid.text_tiles())[tile[rows]][:, tile]
            errors.append((scores.masked_fill(~kept, float("-inf")).softmax(-1) @ v - exact).square().mean((0, 2, 3)))
        order = torch.tensor([ORDERS.index("FHW"), ORDERS.index("HWF")])[torch.stack(errors).argmin(0)]
        return attend(q, k, v, grid=self.grid, order=order, mask=mask.expand(q.shape[1], -1, -1))


@dataclass
class SpargeAttn:
    """Attention of one layer; the density is that of every head."""

    grid: TokenGrid
    density: float

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend sample by sample, as the mask is each sample's own."""
        return torch.cat([self._one(*(x[i : i + 1] for x in (q, k, v))) for i in range(len(q))])

    def _one(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, tiles = q.shape[1], self.grid.tiles
        rows, columns = averages(q[0]), averages(k[0])
        p = (rows @ columns.mT * q.shape[-1] ** -0.5).softmax(-1)  # [H, T, T]
        forced = self.grid.text_tiles() | (likeness(k[0]) < UNLIKE)[:, None]
        count = round(self.density * tiles * tiles)
        forced_share = forced.flatten(1).double().mean(1)
        forced = torch.where((forced_share > self.density)[:, None, None], self.grid.text_tiles(), forced)
        top = torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0)
        ranked = (p / p.sum(-1, keepdim=True) + 2.0 * forced + 2.0 * top).flatten(1)
        mask = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, ranked.topk(count, 1).indices, True)
        order = torch.zeros(heads, dtype=torch.long)
        return attend(q, k, v, grid=self.grid, order=order, mask=mask.view(heads, tiles, tiles) | (top > 0))


def averages(x: Tensor) -> Tensor:
    """Mean of every tile of 64 tokens, [H, T, D]."""
    pad = F.pad(x, (0, 0, 0, -x.shape[1] % TILE)).unflatten(1, (-1, TILE))
    counts = F.pad(torch.ones(x.shape[1]), (0, -x.shape[1] % TILE)).view(-1, TILE).sum(1)
    return pad.sum(2) / counts[:, None]


def likeness(k: Tensor) -> Tensor:
    """Mean cosine between the keys of every tile, [H, T]."""
    return averages(F.normalize(k, dim=-1)).square().sum(-1)


class SageAttention:
    """Attention of one layer."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to every token."""
        return F.scaled_dot_product_attention(by_block(q, 128), by_block(k - k.mean(-2, keepdim=True), 64), v)


def by_block(x: Tensor, tokens: int) -> Tensor:
    """Round to 8 bits with one scale for so many tokens."""
    blocks = F.pad(x, (0, 0, 0, -x.shape[-2] % tokens)).unflatten(-2, (-1, tokens))
    scale = blocks.abs().amax((-1, -2), keepdim=True).clamp(min=1e-30) / 127
    return (torch.round(blocks / scale) * scale).flatten(-3, -2)[..., : x.shape[-2], :]
