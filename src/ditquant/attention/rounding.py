"""Integers of quantized attention, held as floats: Q and K by token, V by tile and channel, P by row of a tile.

Differs from the paper: Q and K are smoothed and quantized too (SageAttention's Smooth-K), as its INT8 kernel needs. A
tile of P has a scale for each of its rows, not one for all of them. V is quantized less the middle of its range, so
that its codes and those of P round what differs within a tile; what a tile's values share is multiplied by the
unrounded sum of P.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ditquant.attention.grid import TILE
from ditquant.errors import DitQuantError
from ditquant.kernels.activation import SMALLEST

BITS = (4, 8)
EXACT_WIDTH = 2**24 // 127**2  # up to this head size float32 holds the INT32 sums of Q and K exactly


@dataclass(frozen=True)
class Scaled:
    """The tensor `values * scale`; `values` are integers where it is quantized."""

    values: Float[Tensor, "*H S D"]
    scale: Float[Tensor, "*H #S #D"]


@dataclass(frozen=True)
class Centered:
    """The tensor `values + middle`, with one middle for 64 tokens; none where nothing is quantized."""

    values: Float[Tensor, "*H S D"]
    middle: Float[Tensor, "*H T D"] | None = None


def check_bits(bits: int | None, what: str) -> None:
    """Refuse other widths than those that hardware multiplies."""
    if bits is not None and (type(bits) is not int or bits not in BITS):
        raise DitQuantError(f"{what} {bits!r} is not allowed. Choose 4, 8 or none.")


def compute_dtype(q: Tensor, qk_bits: int | None) -> torch.dtype:
    """Float32, or float64 where the input has it or integer sums need it."""
    wide = q.dtype == torch.float64 or (qk_bits is not None and q.shape[-1] > EXACT_WIDTH)
    return torch.float64 if wide else torch.float32


def prepare(
    q: Float[Tensor, "*H S D"], k: Float[Tensor, "*H S D"], v: Float[Tensor, "*H S D"], qk_bits: int | None, pv_bits
) -> tuple[Scaled, Scaled, Centered]:
    """Widen, smooth K and quantize; the softmax scale 1/sqrt(D) is in that of Q."""
    q, k, v = (x.to(compute_dtype(q, qk_bits)) for x in (q, k, v))
    if qk_bits is None:
        one = q.new_ones(()).expand(*q.shape[:-1], 1)
        q, k = Scaled(q, one), Scaled(k, one)
    else:
        # a constant per row of scores is lost in the softmax, over whichever tiles
        q, k = by_token(q, qk_bits), by_token(k - k.mean(-2, keepdim=True), qk_bits)
    return Scaled(q.values, q.scale * q.values.shape[-1] ** -0.5), k, by_tile_and_channel(v, pv_bits)


def by_token(x: Float[Tensor, "*H S D"], bits: int) -> Scaled:
    """Symmetric codes, one scale for a token."""
    scale = (x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=SMALLEST)
    return Scaled(torch.round(x / scale), scale)


def by_tile_and_channel(v: Float[Tensor, "*H S D"], bits: int | None) -> Centered:
    """Round what lies between minimum and maximum of a tile's channel; unchanged without `bits`."""
    if bits is None:
        return Centered(v)
    tokens, tiles = v.shape[-2], _tiles(v, -2)
    outside = (torch.arange(tiles.shape[-3] * TILE, device=v.device) >= tokens).view(-1, TILE, 1)
    low = tiles.masked_fill(outside, float("inf")).amin(-2, keepdim=True) / 2
    high = tiles.masked_fill(outside, float("-inf")).amax(-2, keepdim=True) / 2
    scale = ((high - low) / (2 ** (bits - 1) - 1)).clamp(min=SMALLEST)
    middle = high + low
    rounded = torch.round((tiles - middle) / scale) * scale
    return Centered(rounded.flatten(-3, -2)[..., :tokens, :], middle.squeeze(-2))


def round_probabilities(p: Float[Tensor, "*H R S"], bits: int | None) -> Float[Tensor, "*H R S"]:
    """Round to unsigned codes times one scale for each row of a tile; unchanged without `bits`."""
    if bits is None:
        return p
    tiles = _tiles(p, -1)  # [*H, R, T, 64]
    scale = (tiles.amax(-1, keepdim=True) / (2**bits - 1)).clamp(min=SMALLEST)
    return (torch.round(tiles / scale) * scale).flatten(-2)[..., : p.shape[-1]]


def tile_sums(p: Float[Tensor, "*H R S"]) -> Float[Tensor, "*H R T"]:
    """Sum the rows of each tile."""
    return _tiles(p, -1).sum(-1)


def _tiles(x: Tensor, dim: int) -> Tensor:
    """Split an axis into tiles of 64, the last one filled with zeros."""
    pad = (0, -x.shape[dim] % TILE) if dim == -1 else (0, 0, 0, -x.shape[dim] % TILE)
    return F.pad(x, pad).unflatten(dim, (-1, TILE))
