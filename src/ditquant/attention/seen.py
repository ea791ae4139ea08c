"""What a plan is fitted to, gathered from queries and keys as they come: nothing of them is kept."""

from collections import defaultdict

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditquant.attention.criterion import Criterion, OrderScores, score_orders
from ditquant.attention.grid import TokenGrid
from ditquant.attention.masks import Key, of_side
from ditquant.attention.tiles import tile_stats
from ditquant.errors import DitQuantError


class SeenOrders:
    """Scores of the candidate orders of every block and head, averaged over what was seen."""

    def __init__(self, grid: TokenGrid, criterion: Criterion, density: float):
        self.grid, self.criterion, self.density = grid, criterion, density
        self._scores: dict[int, list[Tensor]] = defaultdict(list)

    def add(self, block: int, q: Float[Tensor, "B H S D"], k: Float[Tensor, "B H S D"], name: str = "") -> None:
        """Score the maps of one call of a block's attention; `name` is for errors."""
        check_seen(self.grid, q, k, name or f"block {block}")
        scores = score_orders(q, k, self.grid.of_length(q.shape[-2]), self.criterion, self.density)
        self._scores[block].append(torch.stack([scores.sparse, scores.quant, scores.mass]))

    def scores(self) -> OrderScores:
        """Return the averages, [blocks, H, candidates].

        Raises:
            DitQuantError: a block was not seen, or the blocks have different numbers of heads.
        """
        found = self._scores
        if sorted(found) != list(range(len(found))) or not found:
            raise DitQuantError(
                f"queries and keys were recorded for the blocks {sorted(found)}. Needed is every block."
            )
        if len(heads := {scores.shape[1] for each in found.values() for scores in each}) > 1:
            raise DitQuantError(f"blocks with {sorted(heads)} heads cannot share a plan. Fit one for each kind.")
        return OrderScores(*torch.stack([torch.stack(found[block]).mean(0) for block in sorted(found)], 1))


class SeenTiles:
    """The attention in every tile under chosen orders, averaged over what was seen."""

    def __init__(self, grid: TokenGrid, orders: UInt8[Tensor, "blocks H"]):
        self.grid, self.orders = grid, orders
        self._sums: dict[Key, Tensor] = {}
        self._counts: dict[Key, int] = defaultdict(int)

    def add(self, bin_: int, block: int, q: Float[Tensor, "B H S D"], k: Float[Tensor, "B H S D"], name: str = ""):
        """Add the maps of one call of a block's attention."""
        check_seen(self.grid, q, k, name or f"block {block} in bin {bin_}")
        if block >= len(self.orders):
            raise DitQuantError(f"queries and keys of block {block} were not seen when orders were chosen.")
        index = self.grid.of_length(q.shape[-2]).indices(self.orders[block]).to(q.device)
        heads = torch.arange(len(index), device=q.device)[:, None]
        q, k = (x[:, heads, index].flatten(0, 1) for x in (q, k))
        total = tile_stats(q, k, 0.0).total.unflatten(0, (-1, len(index))).sum(0).float().cpu()
        key, total = (bin_, block), of_side(total, self.grid.tiles)
        self._sums[key] = self._sums[key].add_(total) if key in self._sums else total
        self._counts[key] += len(q) // len(index)

    def sums(self, bins: int) -> dict[Key, Float[Tensor, "H T T"]]:
        """Return the averages for every bin and block.

        Raises:
            DitQuantError: one of them was not seen.
        """
        keys = [(i, block) for i in range(bins) for block in range(len(self.orders))]
        if wrong := sorted(set(keys) ^ self._sums.keys()):
            raise DitQuantError(
                f"queries and keys of bin {wrong[0][0]}, block {wrong[0][1]} were "
                f"{'' if wrong[0] in self._sums else 'not '}recorded. "
                f"Needed are {bins} bins and {len(self.orders)} blocks."
            )
        return {key: self._sums[key] / self._counts[key] for key in keys}


def check_seen(grid: TokenGrid, q: Tensor, k: Tensor, name: str) -> None:
    """Refuse queries and keys that do not fit the grid, or are not numbers."""
    if q.ndim != 4 or q.shape != k.shape:
        raise DitQuantError(f"q and k of {name} have the shapes {tuple(q.shape)} and {tuple(k.shape)}.")
    grid.of_length(q.shape[-2], name)
    check_finite({"q": q, "k": k}, name)


def check_finite(tensors: dict[str, Tensor], name: str) -> None:
    """Refuse NaN and infinity in tensors [B, H, S, D], and name the first head that has one."""
    for which, x in tensors.items():
        if torch.isfinite(x.sum()):  # much faster than asking every number
            continue
        finite = torch.isfinite(x).all(-1).all(-1).all(0)
        if not finite.all():
            head = int((~finite).nonzero()[0])
            raise DitQuantError(f"{which} of head {head} of {name} has NaN or infinity. Look at the layers before it.")
