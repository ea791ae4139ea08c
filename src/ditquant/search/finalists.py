"""The finalists of a search, by the Fréchet distance of what a network sees in pictures or videos that they paint.

The score ranks by the error of latents, which few samples measure well; this distance needs many, so that only the
best candidates and the uniform ones of the same cost are measured. All paint the same conditions from the same seeds,
which are none of the score's.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError, first_line
from ditquant.evaluation.metrics.distributions import frechet_distance
from ditquant.evaluation.shared import generate_shared
from ditquant.search.layers import LayerCache
from ditquant.search.run import Candidate, Searched
from ditquant.search.score import Scorer

SEED_DISTANCE = 1_000_000
Features = Callable[[Sequence[np.ndarray]], Float[Tensor, "B F"]]


@dataclass(frozen=True)
class Final:
    """A candidate (None: full precision) with its Fréchet distance from the reference."""

    name: str
    candidate: Candidate | None
    distance: float


@dataclass(frozen=True)
class Finals:
    """What finalists are measured with: `reference` features, or None for those of full precision."""

    features: Features
    reference: Float[Tensor, "R F"] | None
    samples: int
    count: int

    @torch.no_grad()
    def measure(self, searched: Searched, layers: LayerCache, scorer: Scorer) -> list[Final]:
        """Paint with full precision and the finalists, and return them with the least distance first."""
        own = self._paint(scorer)
        reference = own if self.reference is None else self.reference
        found = [] if self.reference is None else [Final("full precision", None, frechet_distance(own, reference))]
        for candidate in finalists(searched, self.count):
            with layers.in_place(layers.candidate(candidate.genome)):
                distance = frechet_distance(self._paint(scorer), reference)
            found.append(Final(candidate.label or "mixed", candidate, distance))
        return sorted(found, key=lambda final: final.distance)

    def _paint(self, scorer: Scorer) -> Tensor:
        conditions = list(islice(cycle(scorer.conditions), self.samples))
        options = {"batch_size": len(scorer.conditions), "progress": False} | dict(scorer.settings)
        made = generate_shared(scorer.pipeline, conditions, seeds=scorer.seed + SEED_DISTANCE, **options)
        return self.features(made.images)


def finalists(searched: Searched, count: int) -> list[Candidate]:
    """Return the best candidates within the budget, and the uniform ones within it."""
    affordable = [c for c in searched.candidates if c.cost.total <= searched.budget.total]
    best = [c for c in affordable if not c.label][:count]
    return [*best, *(c for c in affordable if c.label)]


def network_features(path: Path) -> Features:
    """Return what a TorchScript network sees: [B, 3, H, W] or [B, 3, F, H, W] in [-1, 1] to features.

    Raises:
        DitQuantError: no such network, or one that takes something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the networks of FVD are distributed in this form
            network = torch.jit.load(str(path), map_location="cpu").eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise DitQuantError(
            f"{path} is no TorchScript network: {first_line(error)}. Give one saved by torch.jit."
        ) from None

    def features(images: Sequence[np.ndarray]) -> Tensor:
        found = []
        for image in images:
            x = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0).float() / 127.5 - 1
            try:
                found.append(network(x[None]).float().flatten())
            except RuntimeError as error:
                raise DitQuantError(f"{path} does not take {tuple(x[None].shape)}: {first_line(error)}.") from None
        return torch.stack(found)

    return features
