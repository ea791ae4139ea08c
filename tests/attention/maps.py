"""Attention written out with the whole map in memory, random inputs, and maps with a known structure."""

from functools import cache

import torch

from ditquant.attention import ORDERS, TILE, TokenGrid

GRIDS = (
    TokenGrid(1, 8, 8),
    TokenGrid(1, 1, 1),
    TokenGrid(1, 7, 9, text=5),
    TokenGrid(3, 5, 11, text=7, text_first=False),
    TokenGrid(5, 7, 9),
    TokenGrid(2, 3, 37, text=63),
    TokenGrid(4, 4, 8, text=64),
    TokenGrid(2, 8, 8, text=130, text_first=False),
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_qkv(grid: TokenGrid, heads: int, size: int, batch: int = 1, seed: int = 0, dtype=torch.float64):
    """Queries and keys with an offset in some channels, as trained models have them, and values."""
    q, k, v = (noise(batch, heads, grid.tokens, size, seed=3 * seed + i) for i in range(3))
    return (q * 1.5).to(dtype), (k + 3 * noise(1, heads, 1, size, seed=seed + 99)).to(dtype), v.to(dtype)


def some_mask(grid: TokenGrid, heads: int, density: float, seed: int = 0) -> torch.Tensor:
    """A random mask that keeps at least one tile a row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(heads, grid.tiles, grid.tiles, generator=generator) < density
    one = torch.randint(grid.tiles, (heads, grid.tiles, 1), generator=generator)
    return mask.scatter(-1, one, True)


@cache
def positions(grid: TokenGrid, order: int) -> torch.Tensor:
    """Where each token of the sequence lies after reordering, token by token from its coordinates."""
    place, sizes = {}, {"F": grid.frames, "H": grid.height, "W": grid.width}
    slow, middle, fast = (sizes[axis] for axis in ORDERS[order])
    before = grid.text if grid.text_first else 0
    for token in range(grid.visual):
        f, rest = divmod(token, grid.height * grid.width)
        at = {"F": f, "H": rest // grid.width, "W": rest % grid.width}
        a, b, c = (at[axis] for axis in ORDERS[order])
        assert a < slow
        place[before + token] = before + (a * middle + b) * fast + c
    return torch.tensor([place.get(token, token) for token in range(grid.tokens)])


def full_map(q, k, grid: TokenGrid, order, mask=None) -> torch.Tensor:
    """The attention map [B, H, S, S] in the tokens' own order; nothing is reordered but the mask's tiles."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        first = 0 if grid.text_first else grid.visual
        text = {token // TILE for token in range(first, first + grid.text)}
        mask = mask.clone()
        mask[:, sorted(text)] = True
        mask[:, :, sorted(text)] = True
        tile = torch.stack([positions(grid, int(o)) // TILE for o in order])
        kept = torch.stack([m[t][:, t] for m, t in zip(mask, tile, strict=True)])
        scores = scores.masked_fill(~kept, float("-inf"))
    return scores.softmax(-1)


def block_diagonal(grid: TokenGrid, order: int, size: int = 32, seed: int = 0, strength: float = 12.0):
    """Queries and keys [1, 1, S, size] whose attention stays within blocks of 128 tokens that follow on an order."""
    block = positions(grid, order) // (2 * TILE)
    codes = torch.linalg.qr(noise(size, size, seed=seed))[0][block]
    jitter = 0.02 * noise(grid.tokens, size, seed=seed + 1)
    q = (codes + jitter) * (strength * size**0.5) ** 0.5
    return q[None, None].float(), q[None, None].float()


def naive_quantized(q, k, v, grid: TokenGrid, order: int, mask, qk_bits: int, pv_bits: int) -> torch.Tensor:
    """One head [S, D] tile by tile in INT32, with the whole map in memory."""
    p, v, place, edges = _quantized_map(q, k, v, grid, order, mask, qk_bits, each=1)
    out = torch.zeros_like(v)
    for c, d in edges:
        low, high = v[c:d].amin(0), v[c:d].amax(0)
        middle, step = (low + high) / 2, (high - low) / 2 / (2 ** (pv_bits - 1) - 1)
        w = torch.where(step > 0, torch.round((v[c:d] - middle) / step), 0).to(torch.int32)
        for i in range(grid.tokens):
            row = p[i, c:d]
            if row.max() > 0:
                scale = row.max() / (2**pv_bits - 1)
                u = torch.round(row / scale).to(torch.int32)
                out[i] += (u @ w).to(q.dtype) * scale * step + row.sum() * middle
    return out[place]


def coarsely_quantized(q, k, v, grid: TokenGrid, order: int, mask, qk_bits: int, pv_bits: int) -> torch.Tensor:
    """The same with coarser scales: one a tile of Q, K and P, one a channel of V, and no middles."""
    p, v, place, edges = _quantized_map(q, k, v, grid, order, mask, qk_bits, each=TILE)
    channel = v.abs().amax(0) / (2 ** (pv_bits - 1) - 1)
    w, out = torch.round(v / channel).to(torch.int32), torch.zeros_like(v)
    for a, b in edges:
        for c, d in edges:
            scale = p[a:b, c:d].max() / (2**pv_bits - 1)
            if scale > 0:
                u = torch.round(p[a:b, c:d] / scale).to(torch.int32)
                out[a:b] += (u @ w[c:d]).to(q.dtype) * scale * channel
    return out[place]


def _quantized_map(q, k, v, grid: TokenGrid, order: int, mask, bits: int, each: int):
    place = positions(grid, order)
    back = place.argsort()
    q, k, v = q[back], k[back], v[back]
    k = k - k.mean(0)
    edges = [(i, min(i + TILE, grid.tokens)) for i in range(0, grid.tokens, TILE)]
    scores = torch.full((grid.tokens, grid.tokens), float("-inf"), dtype=q.dtype)
    for i, (a, b) in enumerate(edges):
        for j, (c, d) in enumerate(edges):
            if mask[i, j] or grid.text_tiles()[i, j]:
                (x, sx), (y, sy) = codes(q[a:b], bits, each), codes(k[c:d], bits, each)
                scores[a:b, c:d] = (x @ y.T).to(q.dtype) * sx * sy.T * q.shape[-1] ** -0.5
    return scores.softmax(-1), v, place, edges


def codes(x: torch.Tensor, bits: int, each: int = TILE):
    """Return codes and their scales, one for `each` tokens."""
    scale = torch.cat([part.abs().max().expand(len(part), 1) for part in x.split(each)]) / (2 ** (bits - 1) - 1)
    return torch.round(x / scale).to(torch.int32), scale
