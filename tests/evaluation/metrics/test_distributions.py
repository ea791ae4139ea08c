"""FID and KID against scipy, sums over all pairs, and distributions whose distance is known."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ditquant.errors import DitQuantError
from ditquant.evaluation.metrics.distributions import fid, frechet_distance, kid, squared_mmd


def features(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width)) / width**0.5
    return torch.tensor(shift + scale * rng.normal(size=(count, width)) @ mix, dtype=torch.float32)


@pytest.mark.parametrize("count", [40, 300], ids=["rank-deficient", "full rank"])
def test_frechet_distance_is_scipys(count):
    x, y = features(count, 64, 0), features(count + 7, 64, 1, scale=1.3, shift=0.2)
    means = [t.double().numpy().mean(0) for t in (x, y)]
    covariances = [np.cov(t.double().numpy(), rowvar=False) for t in (x, y)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_known_distributions():
    x = torch.linspace(-1, 1, 500, dtype=torch.float64)[:, None]
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + 3) == pytest.approx(9)
    assert frechet_distance(x, 5 * x) == pytest.approx(16 * float(x.var()))
    wide = features(300, 20, 0)
    assert frechet_distance(wide, wide[torch.randperm(300)]) == pytest.approx(0, abs=1e-9)


def test_squared_mmd_is_the_sum_over_pairs():
    x, y = features(11, 6, 0).double().numpy(), features(9, 6, 1, shift=0.5).double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(np.dot(a, b)) / 6 + 1) ** 3

    within = [np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    across = np.mean([kernel(a, b) for a in x for b in y])
    expected = within[0] + within[1] - 2 * across
    assert squared_mmd(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-9)


def test_kid_is_unbiased():
    same = [kid(features(60, 8, 2 * i), features(60, 8, 2 * i + 1)) for i in range(60)]
    error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 3 * error
    assert kid(features(60, 8, 0), features(60, 8, 1, shift=1)) > 10 * np.std(same)


def test_too_few_samples_are_refused_with_the_number_needed():
    with pytest.raises(DitQuantError, match="FID needs at least 1000 pictures, got 999"):
        fid(features(1000, 4, 0), features(999, 4, 1))
    with pytest.raises(DitQuantError, match="KID needs at least 50 pictures, got 49"):
        kid(features(49, 4, 0), features(50, 4, 1))
    assert fid(features(1000, 4, 0), features(1000, 4, 1)) < 0.1
    broken = features(50, 4, 0)
    broken[3, 1] = torch.nan
    with pytest.raises(DitQuantError, match="KID got features that are NaN"):
        kid(broken, features(50, 4, 1))
