"""The product of a linear layer by the compiled kernels."""

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.formats import FORMATS, PackedWeight
from ditquant.kernels.activation import quantize_activation
from ditquant.kernels.cpu.library import DTYPES, why_not
from ditquant.kernels.cpu.ops import linear_packed, padded, quantize_tokens
from ditquant.kernels.rotation import Rotation
from ditquant.specs import ActSpec

MAX_CHANNELS = 65536  # sums of products of 8 bits stay in 32 bits
Codes = tuple[Tensor, Tensor, Tensor]  # what `quantize_tokens` returns


def linear_rows(
    x: Float[Tensor, "*B K"],
    weight: PackedWeight,
    activation: ActSpec,
    bias: Float[Tensor, " N"] | None,
    rotation: Rotation | None = None,
    decoded: bool = False,
    gelu: bool = False,
) -> Float[Tensor, "*B N"]:
    """Rotate and quantize the tokens in one pass, decode tiles of the weight, multiply; in the dtype of `x`.

    A rotation needs granularity `token` or `group`. `decoded` keeps the decoded weight where tokens are few;
    `gelu` ends with a GELU (tanh).
    """
    y = multiply(quantize(x, activation, rotation), weight, bias, x.dtype, decoded, gelu)
    return y.view(*x.shape[:-1], weight.shape[0])


def multiply(
    codes: Codes,
    weight: PackedWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    decoded: bool = False,
    gelu: bool = False,
) -> Float[Tensor, "M N"]:
    """Multiply quantized tokens, with one scale each, by a packed weight."""
    spec, params = weight.spec, list(weight.params.values())
    return linear_packed(
        *(*codes, weight.codes, params, bias, weight.shape),
        *(spec.bits, spec.format, spec.symmetric, decoded, dtype, gelu),
    )


def quantize(x: Tensor, activation: ActSpec, rotation: Rotation | None) -> Codes:
    """Return what `quantize_tokens` does; scales that several tokens share are found in torch."""
    if activation.granularity in ("token", "group"):
        r = rotation or Rotation()
        return quantize_tokens(
            *(x, r.factor, r.block, r.signs1, r.permutation, r.signs2),
            *(activation.bits, activation.symmetric, activation.clip, activation.group_size),
        )
    quantized = quantize_activation(x, activation)
    values = (quantized.values.flatten(0, -2).to(torch.int16) + 128).to(torch.uint8)
    values = torch.nn.functional.pad(values, (0, padded(x.shape[-1]) - x.shape[-1]))
    scale = quantized.scale.flatten().contiguous()
    zero = torch.zeros_like(scale) if quantized.zero_point is None else quantized.zero_point.flatten()
    return values, scale, zero.to(torch.int32)


def why_not_rows(x: Tensor, weight: PackedWeight) -> str | None:
    """Say why the compiled kernels cannot take a product that an integer product can; None if they can."""
    if (reason := why_not()) is not None:
        return reason
    if x.dtype not in DTYPES:
        return f"the compiled CPU kernels do not take {x.dtype}"
    if not hasattr(FORMATS[weight.spec.format], "int8_table"):
        return f"format {weight.spec.format!r} has no int8_table"
    if weight.shape[1] > MAX_CHANNELS:
        return f"the compiled CPU kernels take at most {MAX_CHANNELS} input channels"
    return None
