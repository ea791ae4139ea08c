"""The product of a linear layer by the Triton kernels: which layers they take, and how."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ditquant.formats import PackedWeight
from ditquant.kernels.activation import quantize_activation
from ditquant.kernels.grouped import group_of
from ditquant.kernels.rotation import Rotation
from ditquant.kernels.triton.available import why_not
from ditquant.kernels.triton.ops import padded, triton_half, triton_linear, triton_quantize
from ditquant.specs import ActSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 32768  # a program holds a token
LEAST_PART = 16  # smaller groups would be mostly padding


def rotates(block: int) -> bool:
    """Say whether the kernels rotate blocks of this width: tensor cores take no smaller ones, registers no larger."""
    return block in (16, 32, 64, 128)


def why_not_triton(x: Tensor, weight: PackedWeight, activation: ActSpec | None) -> str | None:
    """Say why the Triton kernels cannot take a product; None if they can."""
    if (reason := why_not(x.device)) is not None:
        return reason
    if x.dtype not in DTYPES:
        return f"the Triton kernels do not take {x.dtype}"
    if x.numel() == 0:
        return "there are no tokens"
    if weight.shape[1] > MAX_CHANNELS:
        return f"the Triton kernels take at most {MAX_CHANNELS} input channels"
    spec = weight.spec
    if spec.format not in ("affine", "twin_log"):
        return f"the Triton kernels do not know format {spec.format!r}"
    if spec.format == "twin_log" and spec.group_size is not None:
        return "the Triton kernels take 'twin_log' weights with one group a row"
    if activation is None:
        return None
    if spec.format == "affine" and not spec.symmetric and spec.bits == 8:
        return "asymmetric 8-bit weights do not fit INT8"
    part = group_of(weight, activation)
    if part != weight.shape[1] and (part % 4 or part < LEAST_PART):
        return f"the Triton kernels take groups of {LEAST_PART} channels or more, in multiples of 4, not {part}"
    return None


def linear_triton(
    x: Float[Tensor, "*B K"],
    weight: PackedWeight,
    activation: ActSpec | None,
    bias: Float[Tensor, " N"] | None,
    rotation: Rotation | None = None,
    decoded: bool = False,
    gelu: bool = False,
) -> Float[Tensor, "*B N"]:
    """Rotate and quantize in one pass, decode, multiply; in the dtype of `x`.

    A rotation needs granularity `token` or `group`. `decoded` keeps the INT8 weight for later calls; `gelu`
    ends with a GELU (tanh).
    """
    spec, params = weight.spec, list(weight.params.values())
    kind = (spec.bits, spec.format, spec.symmetric, spec.group_size)
    if activation is None:
        y = triton_half(x, weight.codes, params, bias, weight.shape, *kind)
        return F.gelu(y, approximate="tanh") if gelu else y
    part = group_of(weight, activation)
    r = rotation or Rotation()
    if activation.granularity in ("token", "group"):
        codes = triton_quantize(
            *(x, r.factor, r.block, r.signs1, r.permutation, r.signs2),
            *(activation.bits, activation.symmetric, activation.clip, activation.group_size or x.shape[-1], part),
        )
    else:
        codes = _quantize(x, activation, part)
    fused = gelu and part == x.shape[-1]
    y = triton_linear(*codes, weight.codes, params, bias, weight.shape, *kind, part, decoded, x.dtype, fused)
    y = F.gelu(y, approximate="tanh") if gelu and not fused else y
    return y.view(*x.shape[:-1], weight.shape[0])


def _quantize(x: Tensor, activation: ActSpec, part: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize in torch, with scales that several tokens share."""
    quantized, channels = quantize_activation(x, activation), x.shape[-1]
    width, gap = padded(channels, part)
    values = quantized.values.reshape(-1, channels // part, part)
    values = torch.nn.functional.pad(values, (0, gap)).flatten(1)
    values = torch.nn.functional.pad(values, (0, width - values.shape[1])).contiguous()
    scale = quantized.scale.reshape(1, -1).contiguous()
    if quantized.zero_point is None:
        return values, scale, torch.empty((0, scale.shape[1]), dtype=torch.int32, device=x.device)
    return values, scale, quantized.zero_point.reshape(1, -1).to(torch.int32).contiguous()
