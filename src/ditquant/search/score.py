"""The score of a candidate: the error of its final latents against full precision, on common random numbers.

Every candidate paints the same conditions from the same seeds with the same settings as full precision did, so that a
difference of two scores is one of the plans. Nothing is decoded but what the pipeline decodes by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.evaluation.generate import Generated, generate


@dataclass
class Scorer:
    """A pipeline with what it is asked to paint; `settings` are those of `generate`."""

    pipeline: Any
    conditions: Sequence[str | int]
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    truth: Float[Tensor, "B ..."] | None = None

    def paint(self) -> Generated:
        """Paint with the layers that are in place."""
        batch = len(self.conditions)
        options = {"batch_size": batch, "progress": False} | dict(self.settings)
        return generate(self.pipeline, self.conditions, seeds=self.seed, **options)

    def see_truth(self) -> None:
        """Paint in full precision, and keep the latents."""
        self.truth = self.paint().latents

    def errors(self) -> list[float]:
        """Return |z - z_full|² / |z_full|² of every sample's final latents z."""
        found, truth = self.paint().latents.double().flatten(1), self.truth.double().flatten(1)
        return ((found - truth).square().sum(1) / truth.square().sum(1)).tolist()


def mean(errors: Sequence[float]) -> float:
    """Return the mean error of the samples."""
    return float(torch.tensor(errors, dtype=torch.float64).mean())
