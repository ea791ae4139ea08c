"""Fit an attention plan on recorded queries and keys: first the order of every head, then the masks (PAROAttention)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.attention.bits import pack_mask
from ditquant.attention.criterion import Criterion, OrderScores, score_orders
from ditquant.attention.grid import TokenGrid
from ditquant.attention.masks import Key, of_side, select_tiles
from ditquant.attention.plan import AttentionPlan
from ditquant.attention.tiles import tile_stats
from ditquant.errors import DitQuantError

Record = tuple[int, int, Float[Tensor, "B H S D"], Float[Tensor, "B H S D"]]  # bin, block, q, k


@dataclass(frozen=True)
class AttentionFit:
    """A plan and why: the scores of the candidate orders, and for each mask its density and the attention it keeps."""

    plan: AttentionPlan
    scores: OrderScores  # [blocks, H, candidates]
    density: Float[Tensor, "bins blocks H"] | None
    mass: Float[Tensor, "bins blocks H"] | None


@torch.no_grad()
def fit_attention(
    records: Iterable[Record],
    grid: TokenGrid,
    steps: tuple[int, ...] = (0,),
    *,
    density: float | None = None,
    criterion: Criterion | None = None,
    qk_bits: int | None = None,
    pv_bits: int | None = None,
) -> AttentionFit:
    """Choose orders on all records, then masks of `density` (none if it is None); equal records give equal plans.

    `records` are queries and keys with their positions encoded, tokens in their own order; several for one bin and
    block are averaged. They are gone through twice, one in memory at a time. Masks take four bytes a tile, head,
    block and bin while they are fitted: 0.6 GB a bin for CogVideoX-5B at 17,776 tokens.

    Raises:
        DitQuantError: records that do not fit the grid or leave out a bin or block, a density too small.
    """
    if iter(records) is records:
        raise DitQuantError("the records can be gone through only once. Give a list, or an object that starts again.")
    criterion = criterion or Criterion()
    if criterion.select == "mass" and density is None:
        raise DitQuantError("orders are selected by the mass kept at a density: give one.")
    scores = _fit_orders(records, grid, criterion, density or 1.0)
    candidates = torch.tensor(grid.candidates(), dtype=torch.uint8)
    orders = candidates[scores.best(criterion)]
    bits = {"qk_bits": qk_bits, "pv_bits": pv_bits}
    if density is None:
        return AttentionFit(AttentionPlan(grid, orders, None, (0,) * len(steps), **bits), scores, None, None)
    sums = _tile_sums(records, grid, orders)
    keys = [(i, block) for i in range(max(steps) + 1) for block in range(len(orders))]
    if wrong := sorted(set(keys) ^ sums.keys()):
        raise DitQuantError(
            f"queries and keys of bin {wrong[0][0]}, block {wrong[0][1]} were {'' if wrong[0] in sums else 'not '}"
            f"recorded. Needed are {max(steps) + 1} bins and {len(orders)} blocks."
        )
    masks = select_tiles({key: sums[key] for key in keys}, grid, density)
    packed = torch.stack([pack_mask(masks[key]) for key in keys]).unflatten(0, (-1, len(orders)))
    kept = [(masks[key].double().mean((-1, -2)), _share(sums[key], masks[key])) for key in keys]
    each, mass = (torch.stack(part).unflatten(0, (-1, len(orders))) for part in zip(*kept, strict=True))
    return AttentionFit(AttentionPlan(grid, orders, packed, steps, density=density, **bits), scores, each, mass)


def _fit_orders(records: Iterable[Record], grid: TokenGrid, criterion: Criterion, density: float) -> OrderScores:
    found: dict[int, list[Tensor]] = defaultdict(list)
    for _, block, q, k in _checked(records, grid):
        scores = score_orders(q, k, grid.of_length(q.shape[-2]), criterion, density)
        found[block].append(torch.stack([scores.sparse, scores.quant, scores.mass]))
    if sorted(found) != list(range(len(found))) or not found:
        raise DitQuantError(f"queries and keys were recorded for the blocks {sorted(found)}. Needed is every block.")
    if len(heads := {scores.shape[1] for each in found.values() for scores in each}) > 1:
        raise DitQuantError(f"blocks with {sorted(heads)} heads cannot share a plan. Fit one for each kind.")
    return OrderScores(*torch.stack([torch.stack(found[block]).mean(0) for block in sorted(found)], 1))


def _tile_sums(records: Iterable[Record], grid: TokenGrid, orders: UInt8[Tensor, "blocks H"]) -> Mapping[Key, Tensor]:
    """Sum the attention in every tile under the chosen orders, averaged over records and batch."""
    sums: dict[Key, Tensor] = {}
    counts: dict[Key, int] = defaultdict(int)
    for bin_, block, q, k in _checked(records, grid):
        index = grid.of_length(q.shape[-2]).indices(orders[block]).to(q.device)
        heads = torch.arange(len(index), device=q.device)[:, None]
        q, k = (x[:, heads, index].flatten(0, 1) for x in (q, k))
        total = tile_stats(q, k, 0.0).total.unflatten(0, (-1, len(index))).sum(0).float().cpu()
        total = of_side(total, grid.tiles)
        key = (bin_, block)
        sums[key] = sums[key].add_(total) if key in sums else total
        counts[key] += len(q) // len(index)
    return {key: total.div_(counts[key]) for key, total in sums.items()}


def _checked(records: Iterable[Record], grid: TokenGrid) -> Iterator[Record]:
    for bin_, block, q, k in records:
        if q.ndim != 4 or q.shape != k.shape:
            raise DitQuantError(f"q and k of block {block} have the shapes {tuple(q.shape)} and {tuple(k.shape)}.")
        grid.of_length(q.shape[-2], f"block {block}")
        for name, x in (("q", q), ("k", k)):
            if not torch.isfinite(x).all():
                head = int((~torch.isfinite(x).all(-1).all(-1).all(0)).nonzero()[0])
                raise DitQuantError(f"{name} of head {head} of block {block} in bin {bin_} has NaN or infinity.")
        yield bin_, block, q, k


def _share(sums: Tensor, mask: Tensor) -> Tensor:
    return (sums.double() * mask).sum((-1, -2)) / sums.double().sum((-1, -2))
