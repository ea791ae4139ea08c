"""Training beside quantized layers (LoRA): rounding has no useful gradient, so it is taken for the identity."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant import kernels
from ditquant.formats import PackedWeight
from ditquant.specs import ActSpec


class StraightThrough(torch.autograd.Function):
    """`kernels.linear` whose backward treats the activation's rounding as identity; keeps the packed weight only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*B K"],
        bias: Float[Tensor, " N"] | None,
        weight: PackedWeight,
        activation: ActSpec | None,
        input: Float[Tensor, "*B K"] | None = None,
        rotation: kernels.Rotation | None = None,
    ) -> Float[Tensor, "*B N"]:
        """Multiply as in inference; where a kernel rotates, `x` is only what the gradient flows to."""
        ctx.packed, ctx.bias_dtype = weight, None if bias is None else bias.dtype
        return kernels.linear(x if rotation is None else input, weight, activation, bias, rotation)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*B N"]) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """Multiply by the decoded weight."""
        to_x = grad @ ctx.packed.dequantize().to(grad.dtype) if ctx.needs_input_grad[0] else None
        to_bias = None
        if ctx.needs_input_grad[1]:
            to_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        return to_x, to_bias, None, None, None, None
