"""Signal to quantization noise ratio of tensors such as final latents."""

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError


def sqnr_db(reference: Float[Tensor, "B ..."], test: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Return 10 log10(sum reference² / sum (reference - test)²) of every sample in decibels; infinite if equal.

    Raises:
        DitQuantError: the shapes differ.
    """
    if reference.shape != test.shape:
        raise DitQuantError(f"latents of shape {tuple(test.shape)} cannot be compared with {tuple(reference.shape)}.")
    reference, test = reference.double().flatten(1), test.double().flatten(1)
    signal, noise = reference.square().sum(1), (reference - test).square().sum(1)
    return torch.where(noise == 0, torch.inf, 10 * (signal / noise).log10())
