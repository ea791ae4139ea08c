"""Lists of the kept tiles of every row of tiles, of static shapes: without synchronization, for CUDA graphs too."""

import torch
from torch import Tensor


def tile_lists(keep: Tensor) -> tuple[Tensor, Tensor]:  # bool [H, T, T] -> int32 [H, T, T], int32 [H, T]
    """Return the columns of the kept tiles, first in each row of the list, and how many there are."""
    tiles = keep.shape[-1]
    place = torch.where(keep, keep.cumsum(-1) - 1, tiles)  # the others share one more column
    column = torch.arange(tiles, dtype=torch.int32, device=keep.device).expand(keep.shape)
    lists = torch.zeros(*keep.shape[:-1], tiles + 1, dtype=torch.int32, device=keep.device)
    return lists.scatter_(-1, place, column)[..., :tiles].contiguous(), keep.sum(-1, dtype=torch.int32)
