"""Run a pipeline on calibration prompts: every denoising step, both guidance branches, no decoding."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from ditquant.errors import DitQuantError

SEED = 1_000_003  # calibration noise is not that of any picture a user asks for with a small seed


def run_prompts(pipeline: Any, prompts: Sequence[str | int], seed: int = 0) -> None:
    """Generate each prompt with its own seed; class-conditional pipelines take class numbers as prompts."""
    if isinstance(prompts, str) or not len(prompts):
        raise DitQuantError("prompts must be a list of at least one prompt. Eight are usual.")
    allowed = inspect.signature(pipeline.__call__).parameters
    fixed: dict[str, Any] = {"output_type": "latent", "use_resolution_binning": False, "clean_caption": False}
    fixed = {name: value for name, value in fixed.items() if name in allowed}
    key = "prompt" if "prompt" in allowed else "class_labels"
    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        for i, prompt in enumerate(tqdm(prompts, desc="calibrating", unit="prompt")):
            generator = torch.Generator().manual_seed(SEED + seed + i)
            value = prompt if key == "prompt" else [int(prompt)]
            pipeline(**{key: value}, generator=generator, **fixed)
    finally:
        pipeline.set_progress_bar_config(**({"disable": False} | bar))
