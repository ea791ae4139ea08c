"""Tile masks as bits: one bit a tile, row by row, little-endian."""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ditquant.formats.packing import pack, packed_width, unpack


def mask_bytes(tiles: int) -> int:
    """Bytes of one head's mask: 9,661 for the 278 tiles of 17,776 tokens."""
    return packed_width(tiles * tiles, 1)


def pack_mask(mask: Bool[Tensor, "H T T"]) -> UInt8[Tensor, "H bytes"]:
    """Pack a mask; the last byte of a head is filled with zero bits."""
    return pack(mask.flatten(1).to(torch.uint8), 1)


def unpack_mask(bits: UInt8[Tensor, "H bytes"], tiles: int) -> Bool[Tensor, "H T T"]:
    """Invert `pack_mask`."""
    return unpack(bits, 1, tiles * tiles).view(-1, tiles, tiles).bool()
