"""How codes are chosen."""

from ditquant.quantizers import gptq, rtn, twin_log
from ditquant.quantizers.base import (
    DATA_FREE,
    NEEDS_GRAM,
    QUANTIZERS,
    WeightQuantizer,
    check_options,
    reads_curvature,
    reads_data,
)

__all__ = [
    "DATA_FREE",
    "NEEDS_GRAM",
    "QUANTIZERS",
    "WeightQuantizer",
    "check_options",
    "gptq",
    "reads_curvature",
    "reads_data",
    "rtn",
    "twin_log",
]
