"""The module that replaces nn.Linear."""

from ditquant.nn.linear import DecodedWeight, QuantLinear
from ditquant.nn.swap import dequantize_model, set_module

__all__ = ["DecodedWeight", "QuantLinear", "dequantize_model", "set_module"]
