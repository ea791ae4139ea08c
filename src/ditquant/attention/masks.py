"""Tile masks of a whole model at one density: one threshold for all bins, blocks and heads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from ditquant.attention.criterion import with_forced
from ditquant.attention.grid import TokenGrid
from ditquant.errors import DitQuantError

Key = tuple[int, int]  # bin, block
_LOW = 15  # bits of a float32 that the second look tells apart; the first one has the 16 above, the sign is 0


def select_tiles(
    sums: Mapping[Key, Float[Tensor, "H T T"]], grid: TokenGrid, density: float
) -> dict[Key, Bool[Tensor, "H T T"]]:
    """Keep the tiles with the largest sums; exactly round(density * tiles) of them, ties in the order of the keys.

    Tiles with text and the largest of every row are always kept, and count. Takes no copy of all the sums.

    Raises:
        DitQuantError: the density is below what must always be kept.
    """
    text = grid.text_tiles()
    words = _Words(sums, text)
    count = sum(total.numel() for total in sums.values())
    forced = sum(int((word == _INFINITY).sum()) for _, word in words)
    keep = round(density * count)
    if keep < forced:
        raise DitQuantError(
            f"density {density} keeps {keep} of {count} tiles, but {forced} must be kept (text, and one a row). "
            f"The smallest density here is {forced / count:.4f}."
        )
    threshold = _kth_largest(words, keep)
    left = keep - sum(int((word > threshold).sum()) for _, word in words)
    masks = {}
    for key, word in words:
        tied = word == threshold
        first = tied.flatten().cumsum(0).view_as(word) <= left
        masks[key] = (word > threshold) | (tied & first)
        left -= min(left, int(tied.sum()))
    return masks


def of_side(tiles: Shaped[Tensor, "H S S"], side: int) -> Shaped[Tensor, "H T T"]:
    """Cut a map of tiles at its end, or fill it up with zeros: another length of the text after the visual tokens."""
    end = side - tiles.shape[-1]
    return F.pad(tiles, (0, end, 0, end))


@dataclass(frozen=True)
class _Words:
    """Sums as the integers that have their bits, which for float32 from zero up have the order of the values."""

    sums: Mapping[Key, Tensor]
    text: Tensor

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        for key in sorted(self.sums):
            yield key, with_forced(self.sums[key].float(), self.text).view(torch.int32)


def _kth_largest(words: _Words, k: int) -> int:
    high, above = _bucket((word >> _LOW for _, word in words), k, 1 << (31 - _LOW))
    low = (word[(word >> _LOW) == high] & ((1 << _LOW) - 1) for _, word in words)
    return (high << _LOW) | _bucket(low, k - above, 1 << _LOW)[0]


def _bucket(values: Iterable[Tensor], k: int, buckets: int) -> tuple[int, int]:
    """Return the bucket that holds the k-th largest value, and how many values lie above it."""
    counts = sum(torch.bincount(value.flatten(), minlength=buckets) for value in values)
    reached = counts.flip(0).cumsum(0)
    place = int((reached < k).sum())
    return buckets - 1 - place, int(reached[place - 1]) if place else 0


_INFINITY = int(torch.tensor(float("inf")).view(torch.int32))
