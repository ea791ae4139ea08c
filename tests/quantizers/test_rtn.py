"""Rounding to nearest stays within half a step, keeps zero, and keeps one-signed groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ditquant.quantizers import QUANTIZERS
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats

rtn = QUANTIZERS["rtn"]


def within_half_a_step(weight: torch.Tensor, spec: WeightSpec) -> None:
    packed = rtn(weight, spec)
    error = (packed.dequantize().double() - weight.double()).abs().unflatten(1, (packed.params["scale"].shape[1], -1))
    scale = packed.params["scale"].double()[..., None]
    rounding = 4e-7 * weight.double().abs().amax() + 1e-40
    assert bool((error <= scale / 2 + rounding).all())


@pytest.mark.parametrize("group_size", [None, 8, 125])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_error_is_within_half_a_step(bits, symmetric, group_size):
    weight = torch.randn(7, 1000, generator=torch.Generator().manual_seed(bits))
    within_half_a_step(weight, WeightSpec(bits, group_size=group_size, symmetric=symmetric))
    within_half_a_step(weight.abs() + 3, WeightSpec(bits, group_size=group_size, symmetric=symmetric))


@given(
    weight=hnp.arrays("float32", st.tuples(st.integers(1, 3), st.just(63)), elements=st.floats(-1e6, 1e6, width=32)),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([None, 1, 9, 63]),
)
@settings(deadline=None)
def test_error_is_within_half_a_step_for_any_weight(weight, bits, symmetric, group_size):
    within_half_a_step(torch.from_numpy(weight), WeightSpec(bits, group_size=group_size, symmetric=symmetric))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_stays_zero(bits, symmetric):
    weight = torch.randn(6, 63, generator=torch.Generator().manual_seed(1)) + 0.7
    weight[:, ::5] = 0
    weight[3] = 0
    found = rtn(weight, WeightSpec(bits, symmetric=symmetric)).dequantize()
    assert not found[weight == 0].any()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", range(2, 9))
def test_one_signed_rows_keep_their_values(bits, sign):
    weight = sign * torch.linspace(5, 5.1, 63).expand(3, -1)
    packed = rtn(weight, WeightSpec(bits, symmetric=False))
    within_half_a_step(weight, packed.spec)
    torch.testing.assert_close(packed.params["scale"], torch.full((3, 1), 5.1 / (2**bits - 1)))


def test_symmetric_meets_the_largest_value_exactly():
    weight = torch.tensor([[0.5, -3.5, 1.0], [7.0, 0.0, -1.0]])
    found = rtn(weight, WeightSpec(4)).dequantize()
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=0)


def test_groups_are_rows_of_their_own():
    weight = torch.randn(4, 63, generator=torch.Generator().manual_seed(2))
    grouped = rtn(weight, WeightSpec(3, group_size=9, symmetric=False)).dequantize()
    rows = rtn(weight.view(-1, 9), WeightSpec(3, symmetric=False)).dequantize()
    assert torch.equal(grouped.view(-1, 9), rows)


def test_mirrored_weights_give_mirrored_values():
    weight = torch.randn(4, 63, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rtn(-weight, WeightSpec(4)).dequantize(), -rtn(weight, WeightSpec(4)).dequantize())


def clipped_error(weight: torch.Tensor, spec: WeightSpec, stats: LayerStats | None, clip: str | None) -> torch.Tensor:
    """Weighted squared error of every row and group."""
    power = torch.ones(weight.shape[1]) if stats is None else stats.mean_square
    error = (
        rtn(weight, spec, stats, clip=clip, gain=False).dequantize().double() - weight.double()
    ).square() * power.double()
    return error.unflatten(1, (spec.groups(weight.shape[1]), -1)).sum(-1)


def some_stats(width: int = 63) -> LayerStats:
    stats = LayerStats(width)
    stats.update(torch.randn(100, width, generator=torch.Generator().manual_seed(9)) * torch.logspace(-2, 1, width))
    return stats


@pytest.mark.parametrize("group_size", [None, 9])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_searched_clip_never_loses_in_any_row_or_group(bits, symmetric, group_size):
    weight = torch.randn(40, 63, generator=torch.Generator().manual_seed(bits))
    weight[5, 7] = 100.0
    weight[6] = 0
    spec = WeightSpec(bits, group_size=group_size, symmetric=symmetric)
    for stats in (None, some_stats()):
        whole, clipped = (clipped_error(weight, spec, stats, clip) for clip in (None, "mse"))
        assert bool((clipped <= whole).all())
        if bits < 4:
            assert clipped.sum() < 0.9 * whole.sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_searched_clip_is_near_the_best_ratio(bits):
    weight, spec = torch.randn(8, 1000, generator=torch.Generator().manual_seed(3)), WeightSpec(bits)
    found = clipped_error(weight, spec, None, "mse")[:, 0]
    half, top = 2 ** (bits - 1), weight.abs().amax(1, keepdim=True)
    errors = []
    for ratio in torch.linspace(0.05, 1, 400):
        scale = ratio * top / (half - 1)
        errors.append(((weight / scale).round().clamp(-half, half - 1) * scale - weight).square().sum(1))
    assert bool((found <= 1.01 * torch.stack(errors).amin(0)).all())


def test_the_clip_is_weighted_by_the_inputs():
    weight, stats, spec = torch.randn(40, 63, generator=torch.Generator().manual_seed(4)), some_stats(), WeightSpec(3)
    power = stats.mean_square
    plain, weighted = (rtn(weight, spec, seen, clip="mse", gain=False).dequantize() - weight for seen in (None, stats))
    assert (weighted.square() * power).sum() < 0.95 * (plain.square() * power).sum()
    assert torch.equal(rtn(weight, spec, stats).codes, rtn(weight, spec).codes)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_a_clip_shrinks_is_scaled_back(symmetric):
    weight, stats = torch.randn(40, 63, generator=torch.Generator().manual_seed(5)), some_stats()
    spec = WeightSpec(3, group_size=9, symmetric=symmetric)
    for seen, inputs in ((None, torch.eye(63)), (stats, stats.sample)):
        exact = weight @ inputs.T
        gains = [
            ((rtn(weight, spec, seen, clip="mse", gain=gain).dequantize() @ inputs.T) * exact).sum(1)
            / exact.square().sum(1)
            for gain in (True, False)
        ]
        assert float((gains[0] - 1).abs().max()) < 1e-4 and float(gains[1].mean()) < 0.99
    unclipped = rtn(weight, spec, stats)
    assert torch.equal(unclipped.params["scale"], rtn(weight, spec, gain=False).params["scale"])
