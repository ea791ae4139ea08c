"""A permutation of channels, dealt so that every block gets an equal share of the large ones (DuQuant's zigzag)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditquant.errors import damaged
from ditquant.stats import LayerStats
from ditquant.transforms.base import Transform
from ditquant.transforms.block_rotation import choose_block
from ditquant.transforms.fitters import need_stats, register_transform
from ditquant.transforms.options import check_values, stored_none
from ditquant.transforms.state import check_state, hold


def index_dtype(in_features: int) -> torch.dtype:
    """The smallest integers that number the channels."""
    return torch.int16 if in_features <= 2**15 else torch.int32


def snake(magnitude: Float[Tensor, " K"], block: int) -> Int[Tensor, " K"]:
    """Deal channels by falling magnitude over the K / block blocks: 0 .. G-1, then G-1 .. 0, and so on.

    The blocks' sums then differ by less than the largest magnitude. Entry i is the channel
    that comes i-th.
    """
    order = magnitude.argsort(descending=True, stable=True).view(block, -1).clone()
    order[1::2] = order[1::2].flip(1)
    return order.T.flatten().to(index_dtype(len(magnitude)))


def permute(x: Float[Tensor, "... K"], permutation: Int[Tensor, " K"]) -> Float[Tensor, "... K"]:
    """Return the channels in a stored order."""
    return x.index_select(-1, permutation.to(torch.int32))


def check_permutation(permutation: Int[Tensor, " K"], layer: str) -> None:
    """Refuse what is not a permutation, so that no index is ever out of range."""
    if not torch.equal(permutation.long().sort().values, torch.arange(len(permutation), device=permutation.device)):
        raise damaged(f"{layer}: a permutation does not hold every channel once")


@register_transform("permute")
class Permute(Transform):
    """Reorder the channels of input and weight alike."""

    def __init__(self, permutation: Int[Tensor, " K"]):
        super().__init__()
        hold(self, permutation=permutation)

    @classmethod
    def fit(cls, weight: Float[Tensor, "N K"], stats: LayerStats | None, *, block: int | None = 128) -> "Permute":
        """Deal the channels over blocks by their largest input; useful before quantizing in groups of `block`."""
        check_values("permute", block=block)
        stats = need_stats("permute", weight, stats)
        return cls(snake(stats.absmax, choose_block(weight.shape[1], block)).to(weight.device))

    @classmethod
    def empty(cls, in_features: int, /, **options) -> "Permute":
        """Build it with an order to be loaded; there are no options."""
        stored_none("permute", options)
        return cls(torch.zeros(in_features, dtype=index_dtype(in_features)))

    def forward(self, x: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """Return the channels in the new order."""
        return permute(x, self.permutation)

    def absorb(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return the columns in the new order."""
        return permute(weight, self.permutation)

    def check(self, name: str) -> None:
        """The order is a permutation."""
        check_state(self, name)
        check_permutation(self.permutation, name)
