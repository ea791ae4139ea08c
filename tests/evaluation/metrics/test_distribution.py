"""The Fréchet distance and the Inception Score against scipy."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import entropy

from ditquant.errors import DitQuantError
from ditquant.evaluation.metrics.distribution import frechet_distance, inception_score


def some(rows: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((rows, width)) @ rng.standard_normal((width, width)) + shift)


@pytest.mark.parametrize(("rows", "width"), [(200, 7), (500, 64), (40, 1), (30, 50)])
def test_the_distance_is_that_of_scipy(rows, width):
    one, other = some(rows, width, 1), some(rows + 9, width, 2, shift=0.3)
    (c, d), (m, n) = (np.cov(x.numpy().T).reshape(width, width) for x in (one, other)), (one.mean(0), other.mean(0))
    expected = float(((m - n) ** 2).sum()) + np.trace(c + d - 2 * np.real(sqrtm(c @ d)))
    # with fewer rows than features the matrix root of a singular product is only good to the root of the precision
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-3 if rows < width else 1e-8)


def test_the_distance_of_known_gaussians():
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(100_000, 3, generator=rng, dtype=torch.float64)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one + torch.tensor([1.0, 2, 0]), one) == pytest.approx(5, rel=1e-9)
    # of standard deviations 1 and 3 in three dimensions: 3 (3 - 1)²
    assert frechet_distance(3 * one, one) == pytest.approx(12, rel=0.02)


def test_the_score_is_that_of_scipy():
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 10)) * 3)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    expected = np.exp(np.mean([entropy(row, p.mean(0)) for row in p]))
    assert inception_score(logits) == pytest.approx(expected, rel=1e-12)


def test_the_ends_of_the_score():
    sure = 100 * torch.eye(10).repeat(3, 1)
    assert inception_score(sure) == pytest.approx(10)
    assert inception_score(sure[:1].repeat(5, 1)) == pytest.approx(1)
    assert inception_score(torch.zeros(4, 10)) == pytest.approx(1)


def test_what_has_no_distance():
    with pytest.raises(DitQuantError, match="at least two"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(DitQuantError, match="at least two"):
        frechet_distance(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(DitQuantError, match="NaN"):
        frechet_distance(torch.full((5, 3), torch.nan), torch.zeros(5, 3))
    with pytest.raises(DitQuantError, match="at least one"):
        inception_score(torch.zeros(0, 10))
