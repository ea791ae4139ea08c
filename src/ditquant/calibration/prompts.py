"""Run a pipeline on calibration prompts: every denoising step, both guidance branches, no decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ditquant.pipelines import accepted, clear_errors, conditions, quiet, settings_of
from ditquant.progress import bar as progress_bar

SEED = 1_000_003  # calibration noise is not that of any picture a user asks for with a small seed


def run_prompts(
    pipeline: Any, prompts: Sequence[str | int], seed: int = 0, settings: Mapping[str, float | None] | None = None
) -> None:
    """Generate each prompt with its own seed; class-conditional pipelines take class numbers as prompts.

    `settings` are steps, guidance, height, width and frames; what is left out is the pipeline's default.

    Raises:
        DitQuantError: no prompts, or prompts or settings that the pipeline does not take.
    """
    key, values = conditions(pipeline, prompts)
    arguments = settings_of(pipeline, **(settings or {}))
    if "output_type" in accepted(pipeline):
        arguments["output_type"] = "latent"
    with quiet(pipeline), clear_errors(pipeline):
        for i, value in enumerate(progress_bar(values, desc="calibrating", unit="prompt")):
            generator = torch.Generator().manual_seed(SEED + seed + i)
            pipeline(**{key: value if key == "prompt" else [value]}, generator=generator, **arguments)
