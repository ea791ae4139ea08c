"""What a comparison ran on: figures of two of them stand in one table only where that is the same."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ditquant.integrations.diffusers import transformers_of


@dataclass(frozen=True)
class Conditions:
    """The dtype and kind of device that the reference computed with, and a digest of its weights; None if unknown."""

    dtype: str | None = None
    device: str | None = None
    reference_digest: str | None = None


def conditions_of(reference: Any) -> Conditions:
    """Look at a reference pipeline as it is loaded; reads all of its weights once."""
    if not hasattr(reference, "components"):
        return Conditions()
    counts: Counter[tuple[torch.dtype, str]] = Counter()
    for part in transformers_of(reference).values():
        for tensor in part.parameters():
            if tensor.is_floating_point():
                counts[tensor.dtype, tensor.device.type] += tensor.numel()
    if not counts:
        return Conditions(reference_digest=weights_digest(reference))
    dtype, device = counts.most_common(1)[0][0]
    return Conditions(str(dtype).removeprefix("torch."), device, weights_digest(reference))


def weights_digest(pipeline: Any) -> str | None:
    """Return 16 hex digits of all weights of a pipeline's models; None where some are not in memory."""
    digest = hashlib.blake2b(digest_size=8)
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for part, model in sorted(models.items()):
        for name, tensor in sorted(model.state_dict().items()):
            if tensor.is_meta:
                return None
            digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
