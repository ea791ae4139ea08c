"""What was seen: the inputs of the layers on calibration prompts."""

from ditquant.calibration.collect import collect
from ditquant.calibration.prompts import run_prompts

__all__ = ["collect", "run_prompts"]
