"""Smoothing factors: the formula, its guards, and the rounding before they are absorbed."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.stats import LayerStats
from ditquant.transforms import Smooth
from tests.transforms.salient import salient, stats_of, weight


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_factors_follow_the_formula(alpha: float):
    x, w = salient(32, 96), weight(8, 96)
    expected = w.abs().amax(0) ** alpha / x.abs().amax(0) ** (1 - alpha)
    torch.testing.assert_close(Smooth.fit(w, stats_of(x), alpha=alpha).m.float(), expected, rtol=2**-8, atol=0)


def test_alpha_half_balances_input_and_weight():
    x, w = salient(32, 96), weight(8, 96)
    smooth = Smooth.fit(w, stats_of(x))
    torch.testing.assert_close(smooth(x).abs().amax(0), smooth.absorb(w).abs().amax(0), rtol=2**-6, atol=0)


def test_dead_channels_are_left_alone_and_extreme_ones_stay_finite():
    x, w = salient(32, 96), weight(8, 96)
    x[:, 0], w[:, 1], x[:, 2], x[:, 3] = 0, 0, 1e15, 1e-30
    smooth = Smooth.fit(w, stats_of(x))
    assert smooth.m[:2].eq(1).all()
    assert smooth.m.isfinite().all() and smooth.m.gt(0).all()
    assert smooth.m.half().float().equal(smooth.m.float())  # float16 models see the same factors
    smooth.check("layer")


def test_without_data_it_says_so():
    for stats in (None, LayerStats(96)):
        with pytest.raises(DitQuantError, match="needs calibration data"):
            Smooth.fit(weight(8, 96), stats)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e30])
def test_damaged_factors_are_refused(value: float):
    smooth = Smooth.fit(weight(8, 96), stats_of(salient(8, 96)))
    smooth.m[5] = value
    with pytest.raises(DitQuantError, match=r"block\.3.*factors"):
        smooth.check("block.3")


def test_a_maximum_over_timesteps_is_the_mean_of_each_ones():
    """A channel that is loud at one timestep in four is balanced by a quarter of its peak."""
    weight, stats = torch.ones(4, 3), LayerStats(3)
    for peak in (8.0, 0.0, 0.0, 0.0):
        stats.update(torch.tensor([[4.0, peak, 1.0], [-1.0, 0.0, -1.0]]))
    assert stats.mean_absmax.tolist() == [4, 2, 1] and stats.absmax.tolist() == [4, 8, 1]
    assert Smooth.fit(weight, stats, alpha=0.0, over="timesteps").m.tolist() == [0.25, 0.5, 1]
    assert Smooth.fit(weight, stats, alpha=0.0).m.tolist() == [0.25, 0.125, 1]
    with pytest.raises(DitQuantError, match=r"over 'steps' .* is not allowed\. Choose all or timesteps"):
        Smooth.fit(weight, stats, over="steps")
