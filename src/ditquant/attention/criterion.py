"""Which order of tokens suits a head: PAROAttention's sparse and quantization scores, or the attention mass kept.

Differs from the paper, which adds the sparse score with the sign that prefers the least sparse order.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditquant.attention.grid import TokenGrid
from ditquant.attention.tiles import TileStats, tile_stats
from ditquant.errors import DitQuantError
from ditquant.registry import unknown

SELECT = ("combined", "sparse", "quant", "mass")


@dataclass(frozen=True)
class Criterion:
    """How orders are compared; `alpha` weighs sparsity, `sample` is the fraction of rows of tiles that is looked at.

    A tile is sparse if at least `sigma` of its entries are below `eps`. `mass` needs a density to be kept at.
    """

    select: str = "combined"
    alpha: float = 0.5
    eps: float = 1e-3
    sigma: float = 0.9
    sample: float = 1.0

    def __post_init__(self):
        if self.select not in SELECT:
            raise unknown("way to select orders", self.select, SELECT)
        for name in ("alpha", "eps", "sigma", "sample"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1 or (name == "sample" and value == 0):
                raise DitQuantError(f"{name} {value!r} is not allowed. Choose a number from 0 to 1.")

    def stripes(self, tiles: int) -> Int[Tensor, " R"]:
        """Return the rows of tiles to look at; the same ones for every head and order."""
        count = max(1, round(self.sample * tiles))
        return torch.randperm(tiles, generator=torch.Generator().manual_seed(0))[:count].sort().values


@dataclass(frozen=True)
class OrderScores:
    """Scores of each head under each candidate order: `sparse` and `mass` the larger the better, `quant` the smaller.

    `mass` is the share of attention in the tiles kept at the target density (in each head by itself).
    """

    sparse: Float[Tensor, "*H C"]
    quant: Float[Tensor, "*H C"]
    mass: Float[Tensor, "*H C"]

    def combined(self, alpha: float) -> Float[Tensor, "*H C"]:
        """Return alpha (1 - sparse)/Σ + (1 - alpha) quant/Σ over the candidates; the smallest wins."""
        return alpha * _normalized(1 - self.sparse) + (1 - alpha) * _normalized(self.quant)

    def best(self, criterion: Criterion) -> Int[Tensor, "*H"]:
        """Return the index of the winning candidate; the first one of equals."""
        cost = {
            "combined": lambda: self.combined(criterion.alpha),
            "sparse": lambda: -self.sparse,
            "quant": lambda: self.quant,
            "mass": lambda: -self.mass,
        }[criterion.select]()
        return cost.argmin(-1)


def score_orders(
    q: Float[Tensor, "B H S D"], k: Float[Tensor, "B H S D"], grid: TokenGrid, criterion: Criterion, density: float
) -> OrderScores:
    """Score every candidate order of the grid on one sample's attention maps, averaged over the batch."""
    stripes, text = criterion.stripes(grid.tiles), grid.text_tiles()
    flat_q, flat_k = q.flatten(0, 1), k.flatten(0, 1)
    scores = []
    for order in grid.candidates():
        index = grid.permutation(order).to(q.device)
        stats = tile_stats(flat_q[:, index], flat_k[:, index], criterion.eps, stripes)
        each = torch.stack([*_scores(stats, criterion.sigma), mass_kept(stats.total, text[stripes], density)])
        scores.append(each.double().unflatten(1, q.shape[:2]).mean(1))
    return OrderScores(*torch.stack(scores, -1).cpu())


def _scores(stats: TileStats, sigma: float) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    sparse = (stats.small >= sigma * stats.entries.double()).double().mean((-1, -2))
    mean = (stats.total / stats.entries).clamp(min=torch.finfo(stats.total.dtype).tiny)
    return sparse, (stats.largest / mean).double().clamp(min=1).mean((-1, -2))  # at least 1, where all underflows


def _normalized(scores: Float[Tensor, "*H C"]) -> Float[Tensor, "*H C"]:
    total = scores.sum(-1, keepdim=True)
    return scores / total.where(total > 0, 1.0)


def mass_kept(total: Float[Tensor, "N R T"], always: Tensor, density: float) -> Float[Tensor, " N"]:
    """Return the share of the sum in the largest tiles of each head, those of text and one a row first."""
    keep = round(density * total[0].numel())
    rank = with_forced(total, always).flatten(1)
    chosen = rank.topk(max(1, min(keep, rank.shape[1])), dim=1).indices
    return total.flatten(1).gather(1, chosen).sum(1) / total.flatten(1).sum(1)


def with_forced(total: Float[Tensor, "N R T"], always: Tensor) -> Float[Tensor, "N R T"]:
    """Return the sums with infinity for the tiles that must be kept: those of text, and the largest of every row."""
    top = torch.zeros_like(total, dtype=torch.bool).scatter_(-1, total.argmax(-1, keepdim=True), True)
    return total.masked_fill(top | always.to(total.device), float("inf"))
