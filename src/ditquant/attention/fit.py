"""Fit an attention plan on recorded queries and keys: first the order of every head, then the masks (PAROAttention)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.attention.bits import pack_mask
from ditquant.attention.criterion import Criterion, OrderScores
from ditquant.attention.grid import TokenGrid
from ditquant.attention.masks import Key, select_tiles
from ditquant.attention.plan import AttentionPlan
from ditquant.attention.seen import SeenOrders, SeenTiles
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
    orders = SeenOrders(grid, criterion, density or 1.0)
    for bin_, block, q, k in records:
        orders.add(block, q, k, f"block {block} in bin {bin_}")
    scores = orders.scores()
    plan = plan_of_orders(scores, grid, criterion, steps, qk_bits, pv_bits)
    if density is None:
        return AttentionFit(plan, scores, None, None)
    tiles = SeenTiles(grid, plan.orders)
    for bin_, block, q, k in records:
        tiles.add(bin_, block, q, k)
    return with_masks(plan, scores, tiles.sums(max(steps) + 1), steps, density)


def plan_of_orders(
    scores: OrderScores,
    grid: TokenGrid,
    criterion: Criterion,
    steps: tuple[int, ...],
    qk_bits: int | None,
    pv_bits: int | None,
    timesteps: tuple[float, ...] = (),
) -> AttentionPlan:
    """Return the plan with the best order of every head and all tiles."""
    candidates = torch.tensor(grid.candidates(), dtype=torch.uint8)
    orders = candidates[scores.best(criterion)]
    return AttentionPlan(grid, orders, None, (0,) * len(steps), qk_bits, pv_bits, timesteps=timesteps)


def with_masks(
    plan: AttentionPlan,
    scores: OrderScores,
    sums: Mapping[Key, Float[Tensor, "H T T"]],
    steps: tuple[int, ...],
    density: float,
) -> AttentionFit:
    """Keep the largest tiles of the whole model, and say what that keeps; `sums` are those of every bin and block."""
    masks = select_tiles(sums, plan.grid, density)
    packed = torch.stack([pack_mask(masks[key]) for key in sums]).unflatten(0, (-1, plan.blocks))
    kept = [(masks[key].double().mean((-1, -2)), _share(sums[key], masks[key])) for key in sums]
    each, mass = (torch.stack(part).unflatten(0, (-1, plan.blocks)) for part in zip(*kept, strict=True))
    return AttentionFit(replace(plan, masks=packed, steps=steps, density=density), scores, each, mass)


def _share(sums: Tensor, mask: Tensor) -> Tensor:
    return (sums.double() * mask).sum((-1, -2)) / sums.double().sum((-1, -2))
