"""Final latents of a pipeline, seen where its autoencoder decodes them."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ditquant.errors import DitQuantError


@contextlib.contextmanager
def recorded_latents(pipeline: Any) -> Iterator[list[Tensor]]:
    """Collect what `pipeline.vae.decode` is called with, as float32 on the CPU.

    Raises:
        DitQuantError: the pipeline has no autoencoder with the name `vae`.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        raise DitQuantError(f"{type(pipeline).__name__} has no 'vae': its final latents cannot be compared.")
    own = "decode" in vars(vae)
    decode = vae.decode
    seen: list[Tensor] = []

    @functools.wraps(decode)
    def record(*args, **kwargs):
        latents = args[0] if args else kwargs["z"]
        seen.append(latents.detach().to("cpu", torch.float32))
        return decode(*args, **kwargs)

    vae.decode = record
    try:
        yield seen
    finally:
        if own:
            vae.decode = decode
        else:
            del vae.decode


def join(seen: list[Tensor], batch: int) -> Tensor:
    """Put the latents of one call together, [batch, ...]; a video decoded frame by frame becomes one sample."""
    latents = torch.cat(seen)
    return latents if len(latents) == batch else latents.unflatten(0, (batch, -1))
