"""Run a pipeline on calibration prompts: every denoising step, both guidance branches, no decoding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ditquant.pipelines import accepted, clear_errors, conditions, quiet, settings_of
from ditquant.progress import bar as progress_bar

SEED = 1_000_003  # calibration noise is not that of any picture a user asks for with a small seed


@dataclass(frozen=True)
class PromptRun:
    """Generates prompts, each with its own seed, so that some of them can be run elsewhere.

    Class-conditional pipelines take class numbers as prompts. `settings` are steps, guidance, height, width and frames;
    what is left out is the pipeline's default.
    """

    pipeline: Any
    prompts: Sequence[str | int]
    seed: int = 0
    settings: Mapping[str, float | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(conditions(self.pipeline, self.prompts)[1])

    def __call__(self, only: Sequence[int] | None = None, begin: Callable[[int], object] = lambda i: None) -> None:
        """Generate all prompts, or those of some numbers; `begin` is told which one follows.

        Raises:
            DitQuantError: no prompts, or prompts or settings that the pipeline does not take.
        """
        key, values = conditions(self.pipeline, self.prompts)
        arguments = settings_of(self.pipeline, **self.settings)
        if "output_type" in accepted(self.pipeline):
            arguments["output_type"] = "latent"
        numbers = range(len(values)) if only is None else only
        with quiet(self.pipeline), clear_errors(self.pipeline):
            for i in progress_bar(numbers, desc="calibrating", unit="prompt"):
                begin(i)
                value = values[i] if key == "prompt" else [values[i]]
                generator = torch.Generator().manual_seed(SEED + self.seed + i)
                self.pipeline(**{key: value}, generator=generator, **arguments)


def run_prompts(
    pipeline: Any, prompts: Sequence[str | int], seed: int = 0, settings: Mapping[str, float | None] | None = None
) -> None:
    """Generate all prompts; see PromptRun."""
    PromptRun(pipeline, prompts, seed, settings or {})()
