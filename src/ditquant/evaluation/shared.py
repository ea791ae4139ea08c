"""Generate with all ranks: whole batches go around, so that every picture is equal to the bit to that of one rank."""

from collections.abc import Sequence
from typing import Any

import torch

from ditquant import distributed
from ditquant.evaluation.generate import Generated, check_batch, generate, prompt_seeds


def generate_shared(
    pipeline: Any,
    prompts: Sequence[str | int],
    *,
    seeds: int | Sequence[int],
    batch_size: int = 4,
    progress: bool = True,
    **settings: Any,
) -> Generated:
    """Do what `generate` does, in the ranks that there are; all of them return everything, after the slowest of them.

    Raises:
        DitQuantError: as `generate` does.
    """
    check_batch(batch_size)
    seeds = prompt_seeds(seeds, len(prompts))
    starts = range(0, len(prompts), batch_size)
    own = [i for start in distributed.mine(starts) for i in range(start, min(start + batch_size, len(prompts)))]
    made = None
    if own or distributed.count() == 1:
        chosen, drawn = [prompts[i] for i in own], [seeds[i] for i in own]
        made = generate(pipeline, chosen, seeds=drawn, batch_size=batch_size, progress=progress, **settings)
    found = [(numbers, part) for numbers, part in distributed.gather((own, made)) if part is not None]
    if len(found) == 1:
        return found[0][1]
    order = sorted((number, part, at) for part, (numbers, _) in enumerate(found) for at, number in enumerate(numbers))
    images = [found[part][1].images[at] for _, part, at in order]
    latents = torch.stack([found[part][1].latents[at] for _, part, at in order])
    return Generated(images, latents, max(part.seconds for _, part in found))
