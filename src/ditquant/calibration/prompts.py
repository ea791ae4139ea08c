"""Run a pipeline on calibration prompts: every denoising step, both guidance branches, no decoding."""

from collections.abc import Sequence
from typing import Any

import torch

from ditquant.calibration.conditions import accepted, conditions
from ditquant.errors import DitQuantError
from ditquant.progress import bar as progress_bar

SEED = 1_000_003  # calibration noise is not that of any picture a user asks for with a small seed


def run_prompts(pipeline: Any, prompts: Sequence[str | int], seed: int = 0) -> None:
    """Generate each prompt with its own seed; class-conditional pipelines take class numbers as prompts."""
    if isinstance(prompts, str) or not len(prompts):
        raise DitQuantError("prompts must be a list of at least one prompt. Eight are usual.")
    key, values = conditions(pipeline, prompts)
    allowed = accepted(pipeline)
    fixed: dict[str, Any] = {"output_type": "latent", "use_resolution_binning": False, "clean_caption": False}
    fixed = {name: value for name, value in fixed.items() if name in allowed}
    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        for i, value in enumerate(progress_bar(values, desc="calibrating", unit="prompt")):
            generator = torch.Generator().manual_seed(SEED + seed + i)
            pipeline(**{key: value if key == "prompt" else [value]}, generator=generator, **fixed)
    finally:
        pipeline.set_progress_bar_config(**({"disable": False} | bar))
