"""Operators on packed weights and quantized activations: plain torch first, fast forms that must agree with it."""

from ditquant.kernels.activation import QuantizedActivation, fake_quantize, quantize_activation
from ditquant.kernels.linear import linear, linear_int8, linear_reference, why_not_int8

__all__ = [
    "QuantizedActivation",
    "fake_quantize",
    "linear",
    "linear_int8",
    "linear_reference",
    "quantize_activation",
    "why_not_int8",
]
