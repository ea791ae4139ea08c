"""The product of a linear layer on packed weights: a torch reference, INT8 through `torch._int_mm`, kernels.

All take the transformed input and return it in its own dtype; every faster kernel must agree with the reference.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ditquant.formats import PackedWeight
from ditquant.kernels import cpu, triton
from ditquant.kernels.activation import fake_quantize, quantize_activation
from ditquant.kernels.cpu.ops import FEW_TOKENS
from ditquant.kernels.grouped import group_of, group_weight, linear_grouped, why_not_grouped
from ditquant.kernels.kept import keep
from ditquant.kernels.report import report
from ditquant.kernels.rotation import Rotation
from ditquant.specs import ActSpec

# elsewhere torch._int_mm is a plain loop, a hundred times slower than a float32 product, and never called
CPU_HAS_INT8 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
GROUPS = "groups need a scale for every group of the product"


def linear(
    x: Float[Tensor, "*B K"],
    weight: PackedWeight,
    activation: ActSpec | None,
    bias: Float[Tensor, " N"] | None,
    rotation: Rotation | None = None,
    decoded: bool = False,
    gelu: bool = False,
) -> Float[Tensor, "*B N"]:
    """Multiply with the fastest form that the layer and the device have; which one is logged once.

    A `rotation` of the input is taken where `takes_rotation` says so; `decoded` keeps the decoded weight for later
    calls, where the integer product is taken; `gelu` ends with a GELU (tanh), in the same pass where a kernel can.
    """

    def then(y: Tensor) -> Tensor:
        return F.gelu(y, approximate="tanh") if gelu else y

    slow = triton.why_not_triton(x, weight, activation)
    if slow is None:
        report("products by the Triton kernels")
        return triton.linear_triton(x, weight, activation, bias, rotation, decoded, gelu)
    if x.device.type == "cuda":
        report("the Triton kernels are not taken", slow)
    reason = why_not_int8(x, weight, activation)
    if reason == GROUPS and x.device.type == "cpu":
        return then(_linear_groups(x, weight, activation, bias, rotation, decoded))
    if reason is not None:
        if activation is not None:
            report("the reference product is used", reason)
        return then(linear_reference(x, weight, activation, bias))
    if x.device.type == "cpu":
        slow = cpu.why_not_rows(x, weight)
        if slow is None:
            report("INT8 products by the compiled CPU kernels")
            return cpu.linear_rows(x, weight, activation, bias, rotation, decoded, gelu)
        report("INT8 products by torch._int_mm", slow)
    return then(linear_int8(x, weight, activation, bias, decoded))


def _linear_groups(
    x: Float[Tensor, "*B K"],
    weight: PackedWeight,
    activation: ActSpec,
    bias: Float[Tensor, " N"] | None,
    rotation: Rotation | None,
    decoded: bool,
) -> Float[Tensor, "*B N"]:
    slow = cpu.why_not_groups(x, weight, activation)
    if slow is None:
        report("INT8 products in groups by the compiled CPU kernels")
        return cpu.linear_groups(x, weight, activation, bias, rotation, decoded)
    # torch._int_mm writes all sums for every group: beyond few tokens, and on weights decoded anew, float32 is faster
    few = decoded and x.numel() <= FEW_TOKENS * x.shape[-1] and not torch.compiler.is_compiling()
    if few and CPU_HAS_INT8 and why_not_grouped(x, weight, activation) is None:
        report("INT8 products in groups by torch._int_mm", slow)
        kind = f"grouped {group_of(weight, activation)}"
        return linear_grouped(x, keep(weight, kind, lambda: group_weight(weight, activation)), activation, bias)
    report("the reference product is used", slow)
    return linear_reference(x, weight, activation, bias)


def linear_reference(
    x: Float[Tensor, "*B K"], weight: PackedWeight, activation: ActSpec | None, bias: Float[Tensor, " N"] | None
) -> Float[Tensor, "*B N"]:
    """Decode the weight; with quantized activations multiply in float32, without in the dtype of `x`."""
    if activation is None:
        return F.linear(x, weight.dequantize().to(x.dtype), None if bias is None else bias.to(x.dtype))
    y = F.linear(fake_quantize(x, activation), weight.dequantize())
    return (y if bias is None else y + bias).to(x.dtype)


def linear_int8(
    x: Float[Tensor, "*B K"],
    weight: PackedWeight,
    activation: ActSpec,
    bias: Float[Tensor, " N"] | None,
    decoded: bool = False,
) -> Float[Tensor, "*B N"]:
    """INT8 codes of both sides, INT32 sums, then token scale times row scale."""
    quantized = quantize_activation(x, activation)
    kept = decoded and not torch.compiler.is_compiling()
    values, row_scale = keep(weight, "int8", weight.to_int8) if kept else weight.to_int8()
    flat = quantized.values.flatten(0, -2)  # [M, K]: one group a token
    y = torch._int_mm(flat, values.t())
    if quantized.zero_point is not None:
        y = y - quantized.zero_point.flatten(0, -2).to(torch.int32) * values.sum(1, dtype=torch.int32)
    y = y * quantized.scale.flatten(0, -2) * row_scale
    y = y if bias is None else y + bias
    return y.to(x.dtype).unflatten(0, x.shape[:-1]) if x.ndim > 1 else y.to(x.dtype)[0]


def takes_rotation(x: Tensor, weight: PackedWeight, activation: ActSpec | None) -> bool:
    """Say whether `linear` smooths and rotates this input itself, in the pass that quantizes it."""
    if activation is None or activation.granularity not in ("token", "group"):
        return False
    if triton.why_not_triton(x, weight, activation) is None:
        return True
    if x.device.type != "cpu":
        return False
    reason = why_not_int8(x, weight, activation)
    if reason == GROUPS:
        return cpu.why_not_groups(x, weight, activation) is None
    return reason is None and cpu.why_not_rows(x, weight) is None


def rotates(block: int, device: torch.device) -> bool:
    """Say whether kernels on a device rotate blocks of this width: powers of two, on CUDA from 16 to 128."""
    if triton.why_not(device) is None:
        return triton.rotates(block)
    return block >= 2 and block & (block - 1) == 0


def why_not_int8(x: Tensor, weight: PackedWeight, activation: ActSpec | None) -> str | None:
    """Say why the integer product cannot be taken here; None if it can."""
    if activation is None:
        return "the activations are not quantized"
    if activation.granularity == "group" or weight.spec.group_size is not None:
        return GROUPS
    if weight.spec.format == "affine" and not weight.spec.symmetric and weight.spec.bits == 8:
        return "asymmetric 8-bit weights do not fit INT8"
    if x.device.type not in ("cpu", "cuda") or x.numel() == 0:
        return f"no integer product on {x.device.type}" if x.numel() else "there are no tokens"
    if x.device.type == "cpu" and not CPU_HAS_INT8 and (slow := cpu.why_not_rows(x, weight)) is not None:
        return f"torch has no fast integer product for this CPU (AVX512), and {slow}"
    if weight.shape[1] == 1:
        return "torch._int_mm is wrong for one input channel"
    rows = x.numel() // x.shape[-1]
    if x.device.type == "cuda" and (rows <= 16 or weight.shape[0] % 8 or weight.shape[1] % 8):
        return "torch._int_mm on CUDA needs more than 16 tokens and widths that are multiples of 8"
    return None
