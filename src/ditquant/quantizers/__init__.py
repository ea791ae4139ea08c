"""How codes are chosen."""

from ditquant.quantizers import rtn, twin_log
from ditquant.quantizers.base import DATA_FREE, QUANTIZERS, WeightQuantizer, check_options

__all__ = ["DATA_FREE", "QUANTIZERS", "WeightQuantizer", "check_options", "rtn", "twin_log"]
