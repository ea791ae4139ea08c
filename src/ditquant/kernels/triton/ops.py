"""The Triton kernels as torch operators, with the shapes that torch.compile needs; Triton is imported when one runs."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ditquant.formats import PackedWeight, layout
from ditquant.kernels.kept import keep
from ditquant.specs import WeightSpec

DEPTH = 128  # codes are filled with zeros up to a multiple of this many channels
FEW_TOKENS = 64  # up to here weights are decoded on their way to the product, beyond once before it

operator = partial(torch.library.custom_op, mutates_args=())


def padded(channels: int, part: int = 0) -> tuple[int, int]:
    """Return the bytes of a token's codes, and the gap behind every `part` channels (0: all of them)."""
    part = part or channels
    gap = 0 if part == channels else -part % 32
    return -(-(channels + channels // part * gap) // DEPTH) * DEPTH, gap


@operator("ditquant::triton_rotate")
def triton_rotate(
    x: Tensor, factor: Tensor | None, block: int, signs1: Tensor, permutation: Tensor | None, signs2: Tensor | None
) -> Tensor:
    """Smooth and rotate the last axis of x in float32, see `Rotation`; in its dtype."""
    from ditquant.kernels.triton.rotate import rotate

    flat = _rows(x)
    y = torch.empty_like(flat)
    rotate(flat, _factor(factor), None, signs1, block, y)
    if permutation is not None and signs2 is not None:
        flat, y = y, torch.empty_like(y)
        rotate(flat, None, permutation, signs2, block, y)
    return y.view(x.shape)


@triton_rotate.register_fake
def _(x, factor, block, signs1, permutation, signs2):
    return x.new_empty(x.shape)


@operator("ditquant::triton_quantize")
def triton_quantize(
    x: Tensor,
    factor: Tensor | None,
    block: int,
    signs1: Tensor | None,
    permutation: Tensor | None,
    signs2: Tensor | None,
    bits: int,
    symmetric: bool,
    clip: float,
    group: int,
    part: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth, rotate and quantize every token, or group of channels, of x [*B, K] in float32.

    Returns int8 codes [M, Kp] with gaps of zeros (see `padded`), float32 scales [K / group, M], and int32 zero points
    of the same shape, [0, M] if symmetric.
    """
    from ditquant.kernels.triton.quantize import quantize
    from ditquant.kernels.triton.rotate import rotate

    flat = _rows(x)
    values, scale, zero = _codes(flat, symmetric, group, part, torch.zeros)
    if flat.shape[0] == 0:
        return values, scale, zero
    zeros = None if symmetric else zero
    factor = _factor(factor)
    if permutation is not None and signs1 is not None:
        # float16 may overflow on the way: smoothing and a rotation can make numbers larger
        y = torch.empty_like(flat, dtype=torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32)
        rotate(flat, factor, None, signs1, block, y)
        flat, factor, signs1 = y, None, signs2
    if signs1 is not None and group == flat.shape[1] and part == group:
        rotate(flat, factor, permutation, signs1, block, values, scale, zeros, bits, clip)
        return values, scale, zero
    if signs1 is not None:
        y = torch.empty_like(flat, dtype=torch.float32)
        rotate(flat, factor, permutation, signs1, block, y)
        flat, factor = y, None
    quantize(flat, factor, values, scale, zeros, group, part, padded(flat.shape[1], part)[1], bits, clip)
    return values, scale, zero


@triton_quantize.register_fake
def _(x, factor, block, signs1, permutation, signs2, bits, symmetric, clip, group, part):
    return _codes(x.reshape(-1, x.shape[-1]), symmetric, group, part, torch.empty)


def _codes(x: Tensor, symmetric: bool, group: int, part: int, make) -> tuple[Tensor, Tensor, Tensor]:
    (tokens, channels), device = x.shape, x.device
    width, groups = padded(channels, part)[0], channels // group
    values = (torch.empty if width == channels else make)((tokens, width), dtype=torch.int8, device=device)
    scale = torch.empty((groups, tokens), dtype=torch.float32, device=device)
    return values, scale, torch.empty((0 if symmetric else groups, tokens), dtype=torch.int32, device=device)


@operator("ditquant::triton_linear")
def triton_linear(
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
    group_size: int | None,
    part: int,
    decoded: bool,
    dtype: torch.dtype,
    gelu: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Multiply the tokens of `triton_quantize` with a packed weight: y [M, N] in `dtype`.

    With groups, `part` channels share a scale on both sides. `decoded` keeps the INT8 weight. Then come a GELU (tanh)
    and residual [M, N] + gate [B, N] * y, each gate for M / B tokens, where they are given.
    """
    from ditquant.kernels.triton.multiply import multiply
    from ditquant.kernels.triton.multiply_groups import multiply_groups
    from ditquant.kernels.triton.multiply_packed import multiply_packed
    from ditquant.kernels.triton.state import group_scale, row_state

    weight = packed_weight(codes, params, shape, WeightSpec(bits, format, group_size, symmetric))
    (tokens, _), (rows, channels) = values.shape, weight.shape
    y = torch.empty((tokens, rows), dtype=dtype, device=values.device)
    zeros = zero if zero.shape[0] else None
    if tokens == 0:
        return y
    if part != channels:
        int8, sums = _int8(weight, part, decoded)
        wide = part + padded(channels, part)[1]
        multiply_groups(values, scale, zeros, int8, group_scale(weight), sums, channels // part, wide, y, bias)
        return y
    state = row_state(weight)
    if tokens <= FEW_TOKENS and not decoded and not gelu and gate is None:
        tables = (weight.codes, state.table, state.zero_point, state.scale)
        multiply_packed(values, scale, zeros, *tables, bits, channels, y, bias)
        return y
    int8, parts = _int8(weight, part, decoded)
    sums = None if zeros is None else parts.sum(0, dtype=torch.int32)
    multiply(values, scale, zeros, int8, state.scale, sums, y, bias, gelu, gate, residual)
    return y


@triton_linear.register_fake
def _(values, scale, zero, codes, params, bias, shape, bits, format, symmetric, group_size, part, decoded, dtype, *_):
    return values.new_empty((values.shape[0], shape[0]), dtype=dtype)


def _int8(weight: PackedWeight, part: int, decoded: bool) -> tuple[Tensor, Tensor]:
    """Return the INT8 weight [N, Kp] and the sums of its parts [chunks, N], kept if `decoded`."""
    from ditquant.kernels.triton.decode import CHUNK, decode
    from ditquant.kernels.triton.state import part_state

    def make() -> tuple[Tensor, Tensor]:
        (rows, channels), device = weight.shape, weight.codes.device
        width, gap = padded(channels, part)
        chunk = CHUNK if part == channels else part
        values = (torch.empty if width == channels else torch.zeros)((rows, width), dtype=torch.int8, device=device)
        sums = torch.empty((-(-channels // chunk), rows), dtype=torch.int32, device=device)
        table, zero_point = part_state(weight, part)
        decode(weight.codes, table, zero_point, weight.spec.bits, channels, values, sums, chunk, gap)
        return values, sums

    return keep(weight, f"int8 on cuda, {part}", make) if decoded else make()


@operator("ditquant::triton_half")
def triton_half(
    x: Tensor,
    codes: Tensor,
    params: Sequence[Tensor],
    bias: Tensor | None,
    shape: Sequence[int],
    bits: int,
    format: str,
    symmetric: bool,
    group_size: int | None,
) -> Tensor:
    """Multiply x [*B, K], which is not quantized, with a packed weight: few tokens decode it on its way."""
    from ditquant.kernels.triton.levels import levels
    from ditquant.kernels.triton.multiply_packed import multiply_levels
    from ditquant.kernels.triton.state import level_state

    weight = packed_weight(codes, params, shape, WeightSpec(bits, format, group_size, symmetric))
    flat = _rows(x)
    tokens, rows = flat.shape[0], shape[0]
    y = torch.empty((tokens, rows), dtype=x.dtype, device=x.device)
    if 0 < tokens <= FEW_TOKENS:
        multiply_levels(flat, codes, *level_state(weight), bits, y, bias)
    elif tokens:
        dense = torch.empty(tuple(shape), dtype=x.dtype, device=x.device)
        levels(codes, *level_state(weight), bits, dense)
        y = torch.nn.functional.linear(flat, dense, None if bias is None else bias.to(x.dtype))
    return y.view(*x.shape[:-1], rows)


@triton_half.register_fake
def _(x, codes, params, bias, shape, bits, format, symmetric, group_size):
    return x.new_empty((*x.shape[:-1], shape[0]))


@operator("ditquant::triton_attention")
def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    columns: Tensor | None,
    counts: Tensor | None,
    qk_bits: int | None,
    pv_bits: int | None,
) -> Tensor:
    """Attend [B, H, S, D] in the order `index` int32 [H, S] over the tiles listed in `columns` and `counts`."""
    from ditquant.kernels.triton.attention import attend

    return attend(q, k, v, index, columns, counts, qk_bits, pv_bits)


@triton_attention.register_fake
def _(q, k, v, index, columns, counts, qk_bits, pv_bits):
    return q.new_empty(q.shape)


def packed_weight(codes: Tensor, params: Sequence[Tensor], shape: Sequence[int], spec: WeightSpec) -> PackedWeight:
    """Put a weight together from the arguments of an operator."""
    rows, channels = shape
    names = [name for name in layout(spec, rows, channels) if name != "codes"]
    return PackedWeight(codes, dict(zip(names, params, strict=True)), (rows, channels), spec)


def _rows(x: Tensor) -> Tensor:
    """Return x as [M, K] with channels side by side; rows may have any distance."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


def _factor(words: Tensor | None) -> Tensor | None:
    return None if words is None else words.view(torch.bfloat16)
