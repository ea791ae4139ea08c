"""Operators on packed weights and quantized activations: plain torch first, fast forms that must agree with it."""

from ditquant.kernels.activation import QuantizedActivation, fake_quantize, quantize_activation
from ditquant.kernels.attention import attention
from ditquant.kernels.kept import forget_decoded, kept_bytes
from ditquant.kernels.linear import GROUPS, linear, linear_int8, linear_reference, rotates, takes_rotation, why_not_int8
from ditquant.kernels.rotation import Rotation

__all__ = [
    "GROUPS",
    "QuantizedActivation",
    "Rotation",
    "attention",
    "fake_quantize",
    "forget_decoded",
    "kept_bytes",
    "linear",
    "linear_int8",
    "linear_reference",
    "quantize_activation",
    "rotates",
    "takes_rotation",
    "why_not_int8",
]
