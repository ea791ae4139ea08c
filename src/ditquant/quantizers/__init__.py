"""How codes are chosen."""

from ditquant.quantizers import rtn, twin_log
from ditquant.quantizers.base import QUANTIZERS, WeightQuantizer

__all__ = ["QUANTIZERS", "WeightQuantizer", "rtn", "twin_log"]
