"""Metrics against scikit-image and against signals whose ratio is known."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ditquant.errors import DitQuantError
from ditquant.evaluation.metrics import METRICS, sqnr_db

PICTURES = [name for name, metric in METRICS.items() if not metric.videos]
SIZES = [(64, 64), (11, 11), (63, 41), (12, 100)]


def pair(size: tuple[int, int], noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3)), np.ones((8, 8, 1)))
    reference = smooth[: size[0], : size[1]]
    test = np.clip(reference + rng.normal(0, noise, reference.shape), 0, 255)
    return reference.astype(np.uint8), test.astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [1.0, 20.0, 200.0])
def test_ssim_is_scikit_images(size, noise):
    reference, test = pair(size, noise)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = structural_similarity(reference, test, channel_axis=-1, **options)
    assert METRICS["ssim"]([reference], [test]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [1.0, 20.0, 200.0])
def test_psnr_is_scikit_images(size, noise):
    reference, test = pair(size, noise)
    expected = peak_signal_noise_ratio(reference, test, data_range=255)
    assert METRICS["psnr_db"]([reference], [test]).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", PICTURES)
def test_a_metric_pairs_by_sample(name):
    pairs = [pair((32, 24), noise, seed=int(noise)) for noise in (2, 30, 90)]
    together = METRICS[name]([r for r, _ in pairs], [t for _, t in pairs])
    alone = torch.cat([METRICS[name]([r], [t]) for r, t in pairs])
    assert together.dtype == torch.float64 and torch.equal(together, alone)
    assert together[0] > together[1] > together[2]


@pytest.mark.parametrize("name", PICTURES)
def test_a_video_is_one_sample(name):
    (r1, t1), (r2, t2) = pair((32, 24), 5, seed=1), pair((32, 24), 5, seed=2)
    video = METRICS[name]([np.stack([r1, r2])], [np.stack([t1, t2])])
    frames = METRICS[name]([r1, r2], [t1, t2])
    assert video.shape == (1,) and frames.min() <= video.item() <= frames.max()


@pytest.mark.parametrize(("name", "best"), [("psnr_db", float("inf")), ("ssim", 1.0)])
def test_equal_pictures_are_best(name, best):
    picture, _ = pair((16, 16), 1)
    assert METRICS[name]([picture], [picture]).item() == best


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_cannot_be_paired(name):
    a, b = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 16, 3), np.uint8)
    with pytest.raises(DitQuantError, match="cannot be compared with the reference's"):
        METRICS[name]([a], [b])
    with pytest.raises(DitQuantError, match="cannot be paired"):
        METRICS[name]([a, a], [a])


def test_ssim_names_the_smallest_size():
    small = np.zeros((10, 32, 3), np.uint8)
    with pytest.raises(DitQuantError, match="at least 11 x 11 pixels, got 10 x 32"):
        METRICS["ssim"]([small], [small])


def test_sqnr_of_known_noise():
    reference = torch.randn(3, 4, 8, 8)
    factor = torch.tensor([0.1, 0.01, 1.0]).view(3, 1, 1, 1)
    assert torch.allclose(sqnr_db(reference, reference * (1 + factor)), torch.tensor([20.0, 40, 0]).double(), atol=1e-4)
    assert sqnr_db(reference, reference).tolist() == [float("inf")] * 3
    noise = torch.randn(3, 4, 8, 8)
    assert torch.allclose(sqnr_db(5 * reference, 5 * (reference + noise)), sqnr_db(reference, reference + noise))
    with pytest.raises(DitQuantError, match=r"\(3, 4, 8, 7\) cannot be compared with \(3, 4, 8, 8\)"):
        sqnr_db(reference, reference[..., :7])
