"""The module that replaces nn.Linear."""

from ditquant.nn.decoded import DecodedWeight
from ditquant.nn.linear import QuantLinear
from ditquant.nn.swap import dequantize_model, set_module

__all__ = ["DecodedWeight", "QuantLinear", "dequantize_model", "set_module"]
