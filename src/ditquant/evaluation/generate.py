"""Generate pictures and their final latents: one seed a prompt, the same pictures whatever the batch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.evaluation.latents import join, recorded_latents
from ditquant.pipelines import clear_errors, conditions, quiet, settings_of
from ditquant.progress import bar as progress_bar


@dataclass
class Generated:
    """Pictures, uint8 [H, W, 3] (a video is [F, H, W, 3]); final latents [B, ...], what the autoencoder decoded."""

    images: list[np.ndarray]
    latents: Tensor
    seconds: float


def generate(
    pipeline: Any,
    prompts: Sequence[str | int],
    *,
    seeds: int | Sequence[int],
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch_size: int = 4,
    progress: bool = True,
) -> Generated:
    """Run a pipeline on prompts (or class labels); `seeds` is one seed a prompt, or the first of consecutive ones.

    Raises:
        DitQuantError: an argument that the pipeline does not take, or pictures that would be black.
    """
    name, values = conditions(pipeline, prompts)
    seeds = prompt_seeds(seeds, len(values))
    check_batch(batch_size)
    arguments = settings_of(pipeline, steps=steps, guidance=guidance, height=height, width=width, frames=frames)
    images: list[np.ndarray] = []
    latents: list[Tensor] = []
    begin = time.perf_counter()
    with quiet(pipeline), progress_bar(total=len(values), desc="painting", unit="prompt", disable=not progress) as bar:
        for first in range(0, len(values), batch_size):
            chosen = slice(first, first + batch_size)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
            with recorded_latents(pipeline) as seen, clear_errors(pipeline, batch_size):
                painted = pipeline(**{name: values[chosen]}, generator=generators, output_type="np", **arguments)[0]
            latents.append(join(seen, len(generators)))
            _check_finite(latents[-1], painted, prompts[chosen])
            images += [np.round(np.clip(np.asarray(p), 0, 1) * 255).astype(np.uint8) for p in painted]
            bar.update(len(generators))
    return Generated(images, torch.cat(latents), time.perf_counter() - begin)


def prompt_seeds(seeds: int | Sequence[int], count: int) -> list[int]:
    """Return one seed a prompt.

    Raises:
        DitQuantError: another number of seeds than of prompts.
    """
    seeds = list(range(seeds, seeds + count)) if isinstance(seeds, int) else list(seeds)
    if len(seeds) != count:
        raise DitQuantError(f"{len(seeds)} seeds for {count} prompts. Give one seed a prompt, or a single first seed.")
    return seeds


def check_batch(batch_size: int) -> None:
    """Refuse a number of prompts that cannot be painted at a time."""
    if type(batch_size) is not int or batch_size < 1:
        raise DitQuantError(f"batch_size {batch_size!r} is not allowed. Choose a positive integer.")


def _check_finite(latents: Tensor, painted: Any, prompts: Sequence[str | int]) -> None:
    for prompt, sample, picture in zip(prompts, latents, painted, strict=True):
        if not torch.isfinite(sample).all():
            raise DitQuantError(
                f"the final latents of prompt {prompt!r} are NaN or infinite: its picture would be black. "
                "Load the model in bfloat16 or float32, or quantize it with more bits."
            )
        if not np.isfinite(np.asarray(picture)).all():
            raise DitQuantError(
                f"the autoencoder made NaN of finite latents of prompt {prompt!r}: its picture would be black. "
                "Run it in float32: pipeline.vae.to(torch.float32)."
            )
