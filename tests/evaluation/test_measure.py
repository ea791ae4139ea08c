"""Metrics that fit are measured: those of videos only of videos, and then of the reference too."""

import numpy as np
import torch

from ditquant.evaluation import Generated
from ditquant.evaluation.measure import measured
from ditquant.evaluation.metrics import METRICS


def made(*shape: int, seed: int) -> Generated:
    images = np.random.default_rng(seed).integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    return Generated(list(images), torch.full((2, 4), 1.0 + seed), 1.0)


def test_pictures_have_no_figures_of_videos():
    pictures = {name for name, metric in METRICS.items() if not metric.videos}
    assert measured(made(16, 16, seed=0), made(16, 16, seed=1), ["a", "b"]).keys() == {"latent_sqnr_db", *pictures}
    assert measured(None, made(16, 16, seed=0), ["a", "b"]) == {}


def test_videos_have_all_and_the_reference_its_own():
    truth, other = made(3, 16, 16, seed=0), made(3, 16, 16, seed=1)
    values = measured(truth, other, ["a", "b"])
    assert values.keys() == {"latent_sqnr_db", *METRICS} and all(len(v) == 2 for v in values.values())
    own = measured(None, truth, ["a", "b"])
    assert own.keys() == {"flicker", "warp_error"}
    expected = np.abs(np.diff(truth.images[1].astype(float), axis=0)).mean()
    assert own["flicker"][1] == expected and own["flicker"] != values["flicker"]
