"""Smoothing factors: the formula, its guards, and the rounding before they are absorbed."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.stats import LayerStats
from ditquant.transforms import Smooth
from ditquant.transforms.fake_quantize import fake_quantize
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


def test_extreme_channels_stay_finite():
    x, w = salient(32, 96), weight(8, 96)
    x[:, 0], w[:, 1], x[:, 2], x[:, 3] = 0, 0, 1e15, 1e-30
    smooth = Smooth.fit(w, stats_of(x))
    assert smooth.m.isfinite().all() and smooth.m.gt(0).all()
    assert smooth.m.half().float().equal(smooth.m.float())  # float16 models see the same factors
    smooth.check("layer")


@pytest.mark.parametrize("over", ["all", "timesteps"])
@pytest.mark.parametrize("scale", [2.0**-6, 2.0**6])
def test_larger_inputs_of_smaller_weights_scale_the_factors(scale: float, over: str):
    """Channels without inputs, without weights, and without either follow the others."""
    x, w = salient(32, 96), weight(8, 96)
    x[:, :2], w[:, 1:3] = 0, 0
    here, there = Smooth.fit(w, stats_of(x), over=over), Smooth.fit(w / scale, stats_of(x * scale), over=over)
    assert there.m.float().equal(here.m.float() / scale)


@pytest.mark.parametrize("over", ["all", "timesteps"])
@pytest.mark.parametrize("loud", [1e-6, 1.0, 100.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_a_column_of_zeros_costs_nothing(scale: float, loud: float, over: str):
    """However large its inputs are, and beside whatever inputs: the layer is as exact as without the channel."""
    x, w = salient(32, 96) * scale, weight(8, 96) / scale
    w[:, 7], x[:, 7] = 0, x[:, 7] * loud
    without = [k for k in range(96) if k != 7]
    error, alone = output_error(x, w, over), output_error(x[:, without], w[:, without], over)
    assert error <= 1.01 * alone


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_channel_that_calibration_never_saw_may_fire_later(scale: float):
    """As it happens behind a ReLU; it is as exact as where calibration saw it."""
    x, w = weight(64, 96) * scale, weight(8, 96) / scale
    blind = x.clone()
    blind[:, 7] = 0
    assert output_error(x, w, seen=blind) <= 1.3 * output_error(x, w)


@pytest.mark.parametrize("dead", ["inputs", "weights", "both", "each"])
def test_without_any_channel_to_balance_factors_are_finite(dead: str):
    x, w = salient(32, 96), weight(8, 96)
    match dead:
        case "inputs":
            x[:] = 0
        case "weights":
            w[:] = 0
        case "both":
            x[:], w[:] = 0, 0
        case "each":
            x[:, ::2], w[:, 1::2] = 0, 0
    smooth = Smooth.fit(w, stats_of(x))
    smooth.check("layer")
    assert dead == "each" or smooth.m.eq(1).all()


def output_error(x: torch.Tensor, w: torch.Tensor, over: str = "all", seen: torch.Tensor | None = None) -> float:
    """Return the squared error of a layer's output with its smoothed input in 8 bits a token, its weight exact."""
    smooth = Smooth.fit(w, stats_of(x if seen is None else seen), over=over)
    rounded = fake_quantize(smooth(x), 8)
    return float((rounded @ smooth.absorb(w).T - x @ w.T).square().sum())


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
