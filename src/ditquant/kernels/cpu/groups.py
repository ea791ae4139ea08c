"""The product of a layer whose channels are in groups, by the compiled kernels; `kernels.grouped` has the equation."""

from collections.abc import Sequence
from math import gcd

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.formats import PackedWeight, layout
from ditquant.kernels.cpu.library import DTYPES, library, pointer, why_not
from ditquant.kernels.cpu.linear import MAX_CHANNELS, Codes, quantize
from ditquant.kernels.cpu.ops import FEW_TOKENS, TILE, padded
from ditquant.kernels.kept import keep
from ditquant.kernels.rotation import Rotation
from ditquant.specs import ActSpec, WeightSpec

STEP = 4  # channels of one vpdpbusd


def linear_groups(
    x: Float[Tensor, "*B K"],
    weight: PackedWeight,
    activation: ActSpec,
    bias: Float[Tensor, " N"] | None,
    rotation: Rotation | None = None,
    decoded: bool = False,
) -> Float[Tensor, "*B N"]:
    """Rotate and quantize the tokens in one pass, multiply group by group in INT8, scale and add in float32.

    A rotation needs granularity `token` or `group`. `decoded` keeps the decoded weight where tokens are few.
    """
    y = multiply_groups(quantize(x, activation, rotation), weight, activation.group_size, bias, x.dtype, decoded)
    return y.view(*x.shape[:-1], weight.shape[0])


def multiply_groups(
    codes: Codes,
    weight: PackedWeight,
    group: int | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    decoded: bool = False,
) -> Float[Tensor, "M N"]:
    """Multiply quantized tokens, with a scale for every `group` of channels, by a packed weight."""
    spec, params = weight.spec, list(weight.params.values())
    return linear_packed_groups(
        *(*codes, weight.codes, params, bias, weight.shape, spec.bits),
        *(spec.group_size, spec.symmetric, group, decoded, dtype),
    )


def why_not_groups(x: Tensor, weight: PackedWeight, activation: ActSpec) -> str | None:
    """Say why the compiled kernels cannot take a product in groups; None if they can."""
    if (reason := why_not()) is not None:
        return reason
    if x.dtype not in DTYPES or x.device.type != "cpu" or x.numel() == 0:
        return f"the compiled CPU kernels do not take {x.dtype} on {x.device.type}" if x.numel() else "no tokens"
    if weight.spec.format != "affine":
        return f"format {weight.spec.format!r} has no integer steps in groups"
    if not weight.spec.symmetric and weight.spec.bits == 8:
        return "asymmetric 8-bit weights do not fit INT8"
    if any((group or weight.shape[1]) % STEP for group in (weight.spec.group_size, activation.group_size)):
        return f"the compiled CPU kernels take groups of multiples of {STEP} channels"
    if weight.shape[1] > MAX_CHANNELS:
        return f"the compiled CPU kernels take at most {MAX_CHANNELS} input channels"
    return None


def product_group(width: int, weight_group: int | None, group: int | None) -> int:
    """Return the channels that share a scale on both sides."""
    return gcd(weight_group or width, group or width)


@torch.library.custom_op("ditquant::linear_packed_groups", mutates_args=(), device_types="cpu")
def linear_packed_groups(
    values: Tensor,
    scale: Tensor,
    zero: Tensor,
    codes: Tensor,
    params: Sequence[Tensor],
    bias: Tensor | None,
    shape: Sequence[int],
    bits: int,
    weight_group: int | None,
    symmetric: bool,
    group: int | None,
    decoded: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply the tokens of `quantize_tokens` with a packed `affine` weight: y [M, N] in `dtype`.

    `weight_group` and `group` are the channels that share a scale in the weight and in a token, None all of them.
    """
    spec, (rows, channels) = WeightSpec(bits, "affine", weight_group, symmetric), shape
    names = [name for name in layout(spec, rows, channels) if name != "codes"]
    weight = PackedWeight(codes, dict(zip(names, params, strict=True)), (rows, channels), spec)
    part = product_group(channels, weight_group, group)
    packed = (
        *(pointer(codes), pointer(weight.params["scale"]), pointer(weight.params.get("zero_point")), bits),
        *(rows, channels, weight_group or channels, part),
    )
    keeps = decoded and values.shape[0] <= FEW_TOKENS
    tiles = keep(weight, f"grouped tiles {part}", lambda: _decode(packed)) if keeps else (None, None, None)
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    y = values.new_empty((values.shape[0], rows), dtype=dtype)
    library().ditquant_linear_groups(
        *(pointer(values), pointer(scale), pointer(zero), values.shape[0], group or channels),
        *(*packed, *(pointer(t) for t in tiles), pointer(bias), pointer(y), DTYPES[dtype], torch.get_num_threads()),
    )
    return y


@linear_packed_groups.register_fake
def _(values, scale, zero, codes, params, bias, shape, bits, weight_group, symmetric, group, decoded, dtype):
    return values.new_empty((values.shape[0], shape[0]), dtype=dtype)


def _decode(packed: tuple) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels, group, part = packed[-4:]
    count = -(-rows // TILE)
    tiles = torch.empty(count, padded(channels) * TILE, dtype=torch.int8)
    sums = torch.empty(count, channels // part * TILE, dtype=torch.int32)
    row_scale = torch.empty(count, channels // group * TILE, dtype=torch.float32)
    made = (tiles, sums, row_scale)
    library().ditquant_decode_groups(*packed, *(pointer(t) for t in made), torch.get_num_threads())
    return made
