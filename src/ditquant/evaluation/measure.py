"""What is measured of a model's pictures: beside the reference's, and alone."""

from collections.abc import Sequence

import numpy as np

from ditquant.evaluation import shapes
from ditquant.evaluation.generate import Generated
from ditquant.evaluation.metrics import METRICS, sqnr_db


def measured(truth: Generated | None, made: Generated, prompts: Sequence[str | int]) -> dict[str, list[float]]:
    """Return one value a prompt for each metric that fits; `truth` None for the reference itself."""
    return (_alone(made) if truth is None else _paired(truth, made)) | _captions(made.images, prompts)


def _paired(truth: Generated, made: Generated) -> dict[str, list[float]]:
    values = {"latent_sqnr_db": sqnr_db(truth.latents, made.latents).tolist()}
    fitting = {name: metric for name, metric in METRICS.items() if metric.takes(truth.images)}
    return values | {name: metric(truth.images, made.images).tolist() for name, metric in fitting.items()}


def _alone(made: Generated) -> dict[str, list[float]]:
    fitting = {name: m for name, m in METRICS.items() if m.videos and m.takes(made.images)}
    return {name: metric(made.images, made.images).tolist() for name, metric in fitting.items()}


def _captions(images: list[np.ndarray], prompts: Sequence[str | int]) -> dict[str, list[float]]:
    """Return 1 for each picture that shows its caption; nothing if these are not pictures of scenes."""
    scenes = all(isinstance(prompt, str) and shapes.parse(prompt) is not None for prompt in prompts)
    if not scenes or any(image.shape != (shapes.SIZE, shapes.SIZE, 3) for image in images):
        return {}
    pairs = zip(images, prompts, strict=True)
    return {"caption_accuracy": [shapes.caption_accuracy([image], [prompt]) for image, prompt in pairs]}
