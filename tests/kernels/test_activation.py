"""Activation codes lie in range and within half a step of the input, with one scale for each part they promise."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ditquant.errors import DitQuantError
from ditquant.kernels import fake_quantize, quantize_activation
from ditquant.kernels.activation import SMALLEST
from ditquant.specs import GRANULARITIES, ActSpec

SHAPES = ((63,), (5, 63), (2, 5, 63), (2, 3, 4, 63), (3, 1000))
SETTINGS = [(g, s, b) for g in GRANULARITIES for s in (True, False) for b in (4, 6, 8)]


def act_spec(granularity: str, symmetric: bool, bits: int, group_size: int = 1) -> ActSpec:
    return ActSpec(bits, granularity, group_size if granularity == "group" else None, symmetric)


def some_input(*shape: int) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return x * torch.logspace(-1, 1, shape[-1]) + 0.3


def obeys(x: torch.Tensor, spec: ActSpec) -> None:
    """Codes in range, error within half a step, zero exact."""
    q = quantize_activation(x, spec)
    half = 2 ** (spec.bits - 1)
    assert q.values.dtype == torch.int8
    assert bool((q.values >= (1 - half if spec.symmetric else -half)).all() and (q.values <= half - 1).all())
    assert (q.zero_point is None) == spec.symmetric
    found = q.dequantize()
    assert found.shape == x.shape
    exact = x.double().unflatten(-1, q.values.shape[-2:])
    error = (found.double().unflatten(-1, q.values.shape[-2:]) - exact).abs()
    reach = q.scale.double() * 2**spec.bits  # rounding of float32 is relative to the range
    assert bool((error <= q.scale.double() / 2 + 4e-7 * reach).all())
    assert not found[x == 0].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("granularity", "symmetric", "bits"), SETTINGS)
def test_error_is_within_half_a_step(granularity, symmetric, bits, shape):
    x = some_input(*shape)
    spec = act_spec(granularity, symmetric, bits, 9 if shape[-1] == 63 else 125)
    obeys(x, spec)
    obeys(x.abs() + 2, spec)
    obeys(-x.abs(), spec)
    x[..., ::3] = 0
    obeys(x, spec)


LARGE = 2.0**100


@given(
    x=hnp.arrays("float32", st.sampled_from([(1, 4), (3, 4), (2, 2, 4)]), elements=st.floats(-LARGE, LARGE, width=32)),
    chosen=st.sampled_from(SETTINGS),
)
@settings(deadline=None)
def test_error_is_within_half_a_step_for_any_input(x, chosen):
    obeys(torch.from_numpy(x), act_spec(*chosen, group_size=2))


@pytest.mark.parametrize("size", [1e-45, 1.9e-43, 2.6e-43, 1e-40, 1e-38])
@pytest.mark.parametrize("symmetric", [True, False])
def test_subnormal_inputs_stay_in_range(size, symmetric):
    obeys(torch.tensor([[size, -size / 3, 0.0, size]]), ActSpec(8, symmetric=symmetric))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_token_of_zeros_works(granularity, symmetric):
    x = some_input(2, 4, 63)
    x[1, 2] = 0
    spec = act_spec(granularity, symmetric, 4, 9)
    obeys(x, spec)
    assert not fake_quantize(x, spec)[1, 2].any()
    assert not fake_quantize(0 * x, spec).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(0, 63), (2, 0, 63), (0, 5, 63)])
def test_no_tokens_give_no_codes(granularity, symmetric, shape):
    assert fake_quantize(torch.zeros(shape), act_spec(granularity, symmetric, 8, 9)).shape == shape


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_shared_as_promised(symmetric):
    x = some_input(2, 3, 63)

    def scales(granularity: str) -> torch.Tensor:
        return quantize_activation(x, act_spec(granularity, symmetric, 8, 9)).scale

    assert len(scales("tensor").unique()) == 1
    assert len(scales("sample").unique()) == 2
    assert len(scales("sample")[0].unique()) == 1
    assert scales("token").shape == (2, 3, 1, 1)
    assert len(scales("token").unique()) == 6
    assert scales("group").shape == (2, 3, 7, 1)
    assert len(scales("group").unique()) == 42


@pytest.mark.parametrize("granularity", ["sample", "token", "group"])
def test_samples_are_independent(granularity):
    x = some_input(3, 4, 63)
    spec = act_spec(granularity, False, 4, 9)
    assert torch.equal(fake_quantize(x, spec)[1:2], fake_quantize(x[1:2], spec))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_symmetric_meets_the_largest_value_and_asymmetric_both_ends(bits):
    x = torch.tensor([[-1.0, 0.3, 3.0]])
    symmetric = quantize_activation(x, ActSpec(bits))
    assert int(symmetric.values.max()) == 2 ** (bits - 1) - 1
    assert float(symmetric.dequantize()[0, 2]) == pytest.approx(3.0, rel=1e-6)
    asymmetric = quantize_activation(x, ActSpec(bits, symmetric=False))
    assert int(asymmetric.values.max()) == 2 ** (bits - 1) - 1
    assert int(asymmetric.values.min()) == -(2 ** (bits - 1))
    assert float(asymmetric.scale.unique()) == pytest.approx(4 / (2**bits - 1), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_as_float32(dtype):
    x = some_input(4, 63).to(dtype)
    assert torch.equal(fake_quantize(x, ActSpec(8)), fake_quantize(x.float(), ActSpec(8)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bad_values_do_not_vanish(value, symmetric):
    x = some_input(3, 63)
    x[1, 5] = value
    found = fake_quantize(x, ActSpec(8, symmetric=symmetric))
    assert not bool(torch.isfinite(found[1]).all())
    assert bool(torch.isfinite(found[[0, 2]]).all())


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(DitQuantError, match="group_size 8 does not divide in_features 63"):
        fake_quantize(some_input(2, 63), ActSpec(8, "group", 8))


@pytest.mark.parametrize("clip", [0.3, 0.85])
@pytest.mark.parametrize(("granularity", "symmetric", "bits"), SETTINGS)
def test_a_clip_is_a_clamp_to_part_of_the_range(granularity, symmetric, bits, clip):
    x = some_input(2, 5, 63)
    x[0, 0] = 0
    plain = act_spec(granularity, symmetric, bits, 9)
    whole, clipped = quantize_activation(x, plain), quantize_activation(x, replace(plain, clip=clip))
    torch.testing.assert_close(clipped.scale, (whole.scale * clip).clamp(min=SMALLEST))
    half = 2 ** (bits - 1)
    assert int(clipped.values.min()) >= (1 - half if symmetric else -half) and int(clipped.values.max()) == half - 1
    zero = 0 if clipped.zero_point is None else clipped.zero_point
    low, high = ((end - zero) * clipped.scale for end in ((1 - half if symmetric else -half), half - 1))
    inside = x.unflatten(-1, clipped.values.shape[-2:]).clamp(low, high).flatten(-2)
    error = (clipped.dequantize() - inside).unflatten(-1, clipped.values.shape[-2:]).abs()
    assert bool((error <= 0.501 * clipped.scale).all())
    assert not clipped.dequantize()[x == 0].any()


def test_a_clip_of_one_changes_nothing():
    x = some_input(5, 63)
    for symmetric in (True, False):
        plain = fake_quantize(x, ActSpec(4, symmetric=symmetric))
        assert torch.equal(plain, fake_quantize(x, ActSpec(4, symmetric=symmetric, clip=1.0)))


def test_a_clip_lowers_the_error_of_four_bits():
    x = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))

    def error(clip: float) -> float:
        return float((fake_quantize(x, ActSpec(4, clip=clip)) - x).square().sum())

    assert error(0.8) < 0.8 * error(1.0) and error(0.05) > error(1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bad_values_do_not_vanish_in_a_clip(value, symmetric):
    x = some_input(3, 63)
    x[1, 5] = value
    found = fake_quantize(x, ActSpec(8, symmetric=symmetric, clip=0.9))
    assert not bool(torch.isfinite(found[1]).all())
    assert bool(torch.isfinite(found[[0, 2]]).all())
