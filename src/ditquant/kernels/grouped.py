"""The integer product of a layer whose channels are in groups (Q-DiT, arXiv 2406.17343), in plain torch.

With codes X and W, zero points Zx and Zw and scales sx and sw of group u, which has g channels,
    y[n, j] = Σ_u sx sw (Σ_v X W - Zx Σ_v W - Zw Σ_v X + g Zx Zw).
The sums over W are made once. Symmetric weights have Zw = 0, symmetric inputs Zx = 0, and their terms are left out.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

from ditquant.formats import PackedWeight
from ditquant.kernels.activation import quantize_activation
from ditquant.kernels.cpu.groups import product_group
from ditquant.specs import ActSpec


class GroupedWeight(NamedTuple):
    """w = scale * (values - zero_point), one scale and zero point a group and row; zero_point None means 0.

    `sums` are those of a group's values.
    """

    values: Int8[Tensor, "N G g"]
    scale: Float[Tensor, "G N"]
    zero_point: Int32[Tensor, "G N"] | None
    sums: Int32[Tensor, "G N"]


def why_not_grouped(x: Tensor, weight: PackedWeight, activation: ActSpec) -> str | None:
    """Say why the grouped integer product cannot be taken; None if it can."""
    if weight.spec.format != "affine":
        return f"format {weight.spec.format!r} has no integer steps in groups"
    if x.device.type != "cpu" or x.numel() == 0:
        return f"no grouped product on {x.device.type}" if x.numel() else "there are no tokens"
    if group_of(weight, activation) == 1:
        return "torch._int_mm is wrong for one input channel"
    return None


def group_of(weight: PackedWeight, activation: ActSpec) -> int:
    """Return the channels that share a scale in a product."""
    return product_group(weight.shape[1], weight.spec.group_size, activation.group_size)


def group_weight(weight: PackedWeight, activation: ActSpec) -> GroupedWeight:
    """Unpack a weight of format `affine` to INT8, grouped for the product with such activations."""
    group, half = group_of(weight, activation), 2 ** (weight.spec.bits - 1)
    values = (weight.unpack().to(torch.int16) - half).to(torch.int8).unflatten(1, (-1, group))
    repeats = values.shape[1] // weight.params["scale"].shape[1]
    scale = weight.params["scale"].repeat_interleave(repeats, 1)
    zero = None
    if not weight.spec.symmetric:
        zero = (weight.params["zero_point"].to(torch.int32) - half).repeat_interleave(repeats, 1).T.contiguous()
    return GroupedWeight(values, scale.T.contiguous(), zero, values.sum(2, dtype=torch.int32).T.contiguous())


def linear_grouped(
    x: Float[Tensor, "*B K"], weight: GroupedWeight, activation: ActSpec, bias: Float[Tensor, " N"] | None
) -> Float[Tensor, "*B N"]:
    """Multiply group by group in INT8 with INT32 sums, which are exact up to 131,072 channels a group."""
    groups, group = weight.values.shape[1:]
    quantized = quantize_activation(x, activation)
    repeats = groups // quantized.scale.shape[-2]
    values = quantized.values.flatten(0, -3) if x.ndim > 1 else quantized.values[None]
    values = values.flatten(1).unflatten(1, (groups, group))  # [M, G, g]
    scale = _by_group(quantized.scale, repeats)
    zero = None if quantized.zero_point is None else _by_group(quantized.zero_point, repeats).to(torch.int32)
    y: Tensor | None = None
    for u in range(groups):
        sums = torch._int_mm(values[:, u].contiguous(), weight.values[:, u].t())
        if zero is not None:
            sums -= zero[u] * weight.sums[u]
        if weight.zero_point is not None:
            inputs = values[:, u].sum(1, dtype=torch.int32)[:, None]
            sums -= (inputs if zero is None else inputs - group * zero[u]) * weight.zero_point[u]
        y = _add(y, sums * scale[u], weight.scale[u])
    y = y if bias is None else y + bias
    return y.to(x.dtype).unflatten(0, x.shape[:-1]) if x.ndim > 1 else y.to(x.dtype)[0]


def _by_group(parameter: Float[Tensor, "... G 1"], repeats: int) -> Float[Tensor, "G M 1"]:
    flat = parameter.flatten(0, -3) if parameter.ndim > 2 else parameter[None]
    return flat.transpose(0, 1).repeat_interleave(repeats, 0)


def _add(y: Tensor | None, part: Float[Tensor, "M N"], scale: Float[Tensor, " N"]) -> Float[Tensor, "M N"]:
    return part * scale if y is None else y.addcmul_(part, scale)
