"""What was seen: the inputs of the layers on calibration prompts."""

from ditquant.calibration.by_block import quantize_blocks, record_parts
from ditquant.calibration.collect import collect
from ditquant.calibration.forecast import announce
from ditquant.calibration.kept import layer_places
from ditquant.calibration.one_pass import quantize_one_pass
from ditquant.calibration.part import Part, check_weights, statistics_bytes
from ditquant.calibration.prompts import PromptRun, run_prompts
from ditquant.calibration.record import MAX_CALLS, can_walk, check_max_calls
from ditquant.calibration.store import TensorStore
from ditquant.calibration.work import WorkFolder, describe_models

__all__ = [
    "MAX_CALLS",
    "Part",
    "PromptRun",
    "TensorStore",
    "WorkFolder",
    "announce",
    "can_walk",
    "check_max_calls",
    "check_weights",
    "collect",
    "describe_models",
    "layer_places",
    "quantize_blocks",
    "quantize_one_pass",
    "record_parts",
    "run_prompts",
    "statistics_bytes",
]
