"""The group identity is the float64 product of what both sides decode to, and its sums are exact integers."""

import numpy as np
import pytest
import torch

from ditquant.formats import PackedWeight
from ditquant.kernels import linear_reference, quantize_activation
from ditquant.kernels.grouped import group_of, group_weight, linear_grouped, why_not_grouped
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec

WIDTH, ROWS = 72, 20
GROUPS = [(9, 9), (24, 8), (8, 24), (None, 12), (12, None), (18, 12)]


def acts(bits: int, group: int | None, symmetric: bool) -> ActSpec:
    return ActSpec(bits, "token" if group is None else "group", group, symmetric)


def some_weight(bits: int, group: int | None, symmetric: bool, shift: float = 0.0) -> PackedWeight:
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(bits)) + shift
    return QUANTIZERS["rtn"](weight, WeightSpec(bits, "affine", group, symmetric))


def some_input(*shape: int, shift: float = 0.3) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1)) + shift


def decoded(x: np.ndarray, bits: int, group: int, symmetric: bool) -> np.ndarray:
    """What the codes of an input stand for, from the definition and in float64."""
    out = np.empty_like(x)
    for n in range(len(x)):
        for start in range(0, x.shape[1], group):
            part = x[n, start : start + group]
            if symmetric:
                step = np.abs(part).max() / (2 ** (bits - 1) - 1)
                out[n, start : start + group] = step * np.round(part / step)
            else:
                low, high = min(part.min(), 0), max(part.max(), 0)
                step = (high - low) / (2**bits - 1)
                zero = np.round(-low / step)
                code = np.clip(np.round(part / step) + zero, 0, 2**bits - 1)
                out[n, start : start + group] = step * (code - zero)
    return out


@pytest.mark.parametrize("shape", [(), (5,), (2, 7), (2, 3, 4)])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("x_symmetric", [True, False])
@pytest.mark.parametrize("w_symmetric", [True, False])
def test_the_product_is_that_of_what_both_sides_decode_to(w_symmetric, x_symmetric, groups, shape):
    weight, activation = some_weight(4, groups[0], w_symmetric), acts(8, groups[1], x_symmetric)
    x, bias = some_input(*shape), torch.linspace(-1, 1, ROWS)
    assert why_not_grouped(x, weight, activation) is None
    found = linear_grouped(x, group_weight(weight, activation), activation, bias)
    plain = decoded(x.double().reshape(-1, WIDTH).numpy(), 8, groups[1] or WIDTH, x_symmetric)
    exact = plain @ weight.dequantize().double().numpy().T + bias.numpy()
    assert found.shape == (*shape, ROWS)
    np.testing.assert_allclose(found.reshape(-1, ROWS).double().numpy(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shift", [-4.0, 4.0])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_one_signed_groups_and_all_bits_agree_with_the_reference(bits, symmetric, shift):
    weight, activation = some_weight(bits, 9, symmetric, shift), acts(max(bits, 4), 9, symmetric)
    x = some_input(6, shift=-shift)
    found = linear_grouped(x, group_weight(weight, activation), activation, None)
    reference = linear_reference(x.double(), weight, activation, None)
    torch.testing.assert_close(found.double(), reference, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize(("weight_group", "group", "expected"), [(9, 9, 9), (24, 8, 8), (None, 12, 12), (18, 12, 6)])
def test_sums_are_those_of_the_values(weight_group, group, expected):
    weight, activation = some_weight(4, weight_group, False), acts(8, group, False)
    grouped = group_weight(weight, activation)
    assert group_of(weight, activation) == expected == grouped.values.shape[2]
    codes = weight.unpack().long() - 8
    assert torch.equal(grouped.sums.T.long(), codes.unflatten(1, (-1, expected)).sum(2))
    centred = grouped.values - (grouped.zero_point.T[..., None])
    torch.testing.assert_close((centred * grouped.scale.T[..., None]).flatten(1), weight.dequantize(), rtol=0, atol=0)


def test_a_precision_that_is_kept():
    """Half precision in, half precision out; the sums are not of that precision."""
    weight, activation = some_weight(4, 24, False), acts(8, 24, False)
    x = some_input(5).bfloat16()
    found = linear_grouped(x, group_weight(weight, activation), activation, None)
    wide = linear_grouped(x.float(), group_weight(weight, activation), activation, None)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wide.bfloat16())


def test_what_has_no_grouped_product():
    x, weight = some_input(3), some_weight(4, 9, False)
    twin = QUANTIZERS["twin_log"](weight.dequantize(), WeightSpec(4, "twin_log", 9))
    assert "'twin_log' has no integer steps" in why_not_grouped(x, twin, acts(8, 9, False))
    assert why_not_grouped(x[:0], weight, acts(8, 9, False)) == "there are no tokens"
    assert "one input channel" in why_not_grouped(x, weight, acts(8, 8, False))
    assert quantize_activation(x, acts(8, 8, False)).values.shape == (3, 9, 8)
