"""The compiled kernels as torch operators, with the shapes that torch.compile needs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ditquant.formats import FORMATS, PackedWeight, layout
from ditquant.kernels.cpu.library import DTYPES, library, pointer
from ditquant.kernels.kept import keep
from ditquant.specs import WeightSpec

TILE = 64
FEW_TOKENS = 512  # beyond, decoding adds under 4 % to a product, and not worth a byte a weight


def padded(channels: int) -> int:
    """Bytes of a token's codes: channels up to whole vectors."""
    return -(-channels // TILE) * TILE


@torch.library.custom_op("ditquant::quantize_tokens", mutates_args=(), device_types="cpu")
def quantize_tokens(
    x: Tensor,
    factor: Tensor | None,
    block: int,
    signs1: Tensor | None,
    permutation: Tensor | None,
    signs2: Tensor | None,
    bits: int,
    symmetric: bool,
    clip: float,
    group: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth, rotate and quantize every token of x [*B, K] in float32, reading it once; see `Rotation`.

    Returns uint8 codes + 128 [M, padded K], float32 scales [M * G] and int32 zero points [M * G], one for every `group`
    of channels, a multiple of 4, or for all of them.
    """
    x = x.reshape(-1, x.shape[-1]).contiguous()
    values, scale, zero = _empty_codes(x, group)
    order = None if permutation is None else permutation.to(torch.int32)
    library().ditquant_quantize(
        *(pointer(x), DTYPES[x.dtype], *x.shape, pointer(factor), block),
        *(pointer(signs1), pointer(order), pointer(signs2), bits, int(symmetric), clip, group or x.shape[1]),
        *(pointer(values), pointer(scale), pointer(zero), torch.get_num_threads()),
    )
    return values, scale, zero


@quantize_tokens.register_fake
def _(x, factor, block, signs1, permutation, signs2, bits, symmetric, clip, group=None):
    return _empty_codes(x.reshape(-1, x.shape[-1]), group)


def _empty_codes(x: Tensor, group: int | None) -> tuple[Tensor, Tensor, Tensor]:
    tokens, groups = x.shape[0], x.shape[1] // group if group else 1
    return (
        x.new_empty((tokens, padded(x.shape[1])), dtype=torch.uint8),
        x.new_empty((tokens * groups,), dtype=torch.float32),
        x.new_empty((tokens * groups,), dtype=torch.int32),
    )


@torch.library.custom_op("ditquant::linear_packed", mutates_args=(), device_types="cpu")
def linear_packed(
    values: Tensor,
    scale: Tensor,
    zero: Tensor,
    codes: Tensor,
    params: Sequence[Tensor],
    bias: Tensor | None,
    shape: Sequence[int],
    bits: int,
    format: str,
    symmetric: bool,
    decoded: bool,
    dtype: torch.dtype,
    gelu: bool = False,
) -> Tensor:
    """Multiply the tokens of `quantize_tokens` with a packed weight: y [M, N] in `dtype`, or the GELU (tanh) of that.

    The weight's tiles are decoded one at a time; `decoded`: all of them once, and kept, if there are few tokens.
    """
    spec, (rows, channels) = WeightSpec(bits, format, symmetric=symmetric), shape
    names = [name for name in layout(spec, rows, channels) if name != "codes"]
    weight = PackedWeight(codes, dict(zip(names, params, strict=True)), (rows, channels), spec)
    table, row_scale = keep(weight, "table", lambda: _table(weight))
    stride = table.shape[1] if len(table) == rows else 0
    packed = (pointer(codes), pointer(table), stride, bits, rows, channels)
    keeps = decoded and values.shape[0] <= FEW_TOKENS
    tiles, sums = keep(weight, "tiles", lambda: _decode(packed)) if keeps else (None, None)
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    y = values.new_empty((values.shape[0], rows), dtype=dtype)
    library().ditquant_linear(
        *(pointer(values), pointer(scale), pointer(zero), values.shape[0], *packed, pointer(tiles), pointer(sums)),
        *(pointer(row_scale), pointer(bias), pointer(y), DTYPES[dtype], int(gelu), torch.get_num_threads()),
    )
    return y


@linear_packed.register_fake
def _(values, scale, zero, codes, params, bias, shape, bits, format, symmetric, decoded, dtype, gelu=False):
    return values.new_empty((values.shape[0], shape[0]), dtype=dtype)


def _table(weight: PackedWeight) -> tuple[Tensor, Tensor]:
    table, row_scale = FORMATS[weight.spec.format].int8_table(weight.params, weight.spec)
    return table.contiguous(), row_scale.contiguous()


def _decode(packed: tuple) -> tuple[Tensor, Tensor]:
    rows, channels = packed[-2:]
    tiles = torch.empty(-(-rows // TILE), padded(channels) * TILE, dtype=torch.int8)
    sums = torch.empty(len(tiles) * TILE, dtype=torch.int32)
    library().ditquant_decode(*packed, pointer(tiles), pointer(sums), torch.get_num_threads())
    return tiles, sums
