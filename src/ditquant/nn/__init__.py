"""The module that replaces nn.Linear."""

from ditquant.nn.decoded import DecodedWeight
from ditquant.nn.linear import QuantLinear
from ditquant.nn.low_rank import LowRank
from ditquant.nn.mode import set_mode
from ditquant.nn.swap import dequantize_model, set_module

__all__ = ["DecodedWeight", "LowRank", "QuantLinear", "dequantize_model", "set_mode", "set_module"]
