"""What is measured of a model's pictures: beside the reference's, alone, and as a set."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ditquant.errors import DitQuantError
from ditquant.evaluation import moving_shapes, shapes
from ditquant.evaluation.generate import Generated
from ditquant.evaluation.metrics import METRICS, sqnr_db
from ditquant.evaluation.metrics.distributions import check_real, fid, kid
from ditquant.evaluation.networks import Networks

# who reads pictures back, what shape they must have, and a caption that is understood
_JUDGES = (
    (shapes, (shapes.SIZE, shapes.SIZE, 3), "a large red circle in the centre on a blue ground"),
    (
        moving_shapes,
        (moving_shapes.FRAMES, moving_shapes.SIZE, moving_shapes.SIZE, 3),
        moving_shapes.caption(moving_shapes.CLIPS[0]),
    ),
)
SETS: dict[str, Callable[[Tensor, Tensor], float]] = {"fid": fid, "kid": kid}


class Measures:
    """Measures one model after the other; the first is the reference. `notes` say what was left out and why."""

    def __init__(self, prompts: Sequence[str | int], networks: Networks | None = None):
        self.prompts, self.networks = prompts, networks or Networks()
        self.notes = list(self.networks.notes)
        self._truth: Generated | None = None
        self._features: Tensor | None = None

    def __call__(self, made: Generated) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Return one value a prompt for each metric that fits, and one value for each metric of the whole set."""
        values = _alone(made) if self._truth is None else self._paired(self._truth, made)
        values |= self._captions(made.images) | self._clip_scores(made.images)
        scores = self._scores(made.images)
        self._truth = self._truth or made
        return values, scores

    def _paired(self, truth: Generated, made: Generated) -> dict[str, list[float]]:
        values = {"latent_sqnr_db": sqnr_db(truth.latents, made.latents).tolist()}
        fitting = {name: metric for name, metric in METRICS.items() if metric.takes(truth.images)}
        values |= {name: metric(truth.images, made.images).tolist() for name, metric in fitting.items()}
        if self.networks.lpips is None:
            return values
        pairs = [(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(truth.images, made.images, strict=True)]
        try:
            return values | {"lpips": [float(self.networks.lpips(a, b)) for a, b in pairs]}
        except DitQuantError as error:
            return values | self._without("LPIPS", error)

    def _captions(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Return 1 for each picture or video that shows its caption; a line where only some of it can be read back."""
        for judge, shape, example in _JUDGES:
            unknown = [i for i, p in enumerate(self.prompts) if not isinstance(p, str) or judge.parse(p) is None]
            fits = all(image.shape == shape for image in images)
            if fits and not unknown:
                pairs = zip(images, self.prompts, strict=True)
                return {"caption_accuracy": [judge.caption_accuracy([image], [prompt]) for image, prompt in pairs]}
            if len(unknown) < len(self.prompts) or (fits and isinstance(self.prompts[unknown[0]], str)):
                reason = f"the pictures have the shape {images[0].shape} and not {shape}."
                if unknown:
                    where = f"prompt {unknown[0]}, {self.prompts[unknown[0]]!r},"
                    reason = (
                        f"{where} is no scene that can be read back, such as {example!r}. Leave it out or complete it."
                    )
                return self._without("caption accuracy", reason)
        return {}

    def _clip_scores(self, images: Sequence[np.ndarray]) -> dict[str, list[float]]:
        if self.networks.clip is None:
            return {}
        if not all(isinstance(prompt, str) for prompt in self.prompts):
            return self._without("CLIPScore", "class labels are no text.")
        return {"clip_score": self.networks.clip.scores(images, [str(prompt) for prompt in self.prompts])}

    def _scores(self, images: Sequence[np.ndarray]) -> dict[str, float]:
        if self.networks.inception is None:
            return {}
        features, scores = self.networks.inception.features(images), {}
        for suffix, other in (("", self._features), ("_real", self._real)):
            for name, distance in SETS.items() if other is not None else ():
                try:
                    check_real([name + suffix], len(self.networks.real))
                    scores[name + suffix] = distance(other, features)
                except DitQuantError as error:
                    self._without(name + suffix, error)
        self._features = features if self._features is None else self._features
        return scores

    @cached_property
    def _real(self) -> Tensor | None:
        return self.networks.inception.features(self.networks.real) if len(self.networks.real) else None

    def _without(self, metric: str, reason: object) -> dict:
        note = f"{metric} left out: {reason}"
        self.notes += [] if note in self.notes else [note]
        return {}


def _alone(made: Generated) -> dict[str, list[float]]:
    fitting = {name: m for name, m in METRICS.items() if m.videos and m.takes(made.images)}
    return {name: metric(made.images, made.images).tolist() for name, metric in fitting.items()}
