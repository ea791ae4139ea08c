"""The integer product and the reference agree with each other and with the float64 product of what they decode."""

import logging
import sys

import numpy as np
import pytest
import torch

from ditquant.formats import PackedWeight
from ditquant.kernels import fake_quantize, linear, linear_int8, linear_reference, report, why_not_int8
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec

SHAPES = ((63,), (5, 63), (2, 5, 63), (2, 3, 4, 63))
ACTS = [ActSpec(b, g, symmetric=s) for b in (4, 8) for g in ("tensor", "sample", "token") for s in (True, False)]


MODULE = sys.modules["ditquant.kernels.linear"]  # the package exports a function of the same name


@pytest.fixture(autouse=True)
def an_integer_product(monkeypatch):
    """Take the integer product on any CPU, fast or not."""
    monkeypatch.setattr(MODULE, "CPU_HAS_INT8", True)


def some_input(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.2


def some_weight(bits: int, kind: str = "affine", width: int = 63, rows: int = 40, **options) -> PackedWeight:
    weight = 0.03 * torch.randn(rows, width, generator=torch.Generator().manual_seed(bits))
    return QUANTIZERS["rtn" if kind == "affine" else kind](weight, WeightSpec(bits, kind, **options))


def some_bias(rows: int = 40) -> torch.Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(2))


def exact_product(x: torch.Tensor, weight: PackedWeight, activation: ActSpec | None, bias: torch.Tensor | None):
    """Float64 product of the decoded input and the decoded weight."""
    x = x if activation is None else fake_quantize(x, activation)
    return x.double() @ weight.dequantize().double().T + (0 if bias is None else bias.double())


def sqnr_db(exact: torch.Tensor, found: torch.Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (exact - found.double()).square().sum()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTS)
def test_both_forms_are_the_product_of_what_they_decode(activation, shape):
    x, weight, bias = some_input(*shape), some_weight(4), some_bias()
    exact = exact_product(x, weight, activation, bias)
    for product in (linear_reference, linear_int8, linear):
        found = product(x, weight, activation, bias)
        assert found.shape == (*shape[:-1], 40)
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["affine", "twin_log"])
def test_int8_is_exact_where_the_format_is(kind, bits, symmetric):
    weight = some_weight(bits, kind, 1000, **({"symmetric": symmetric} if kind == "affine" else {}))
    x, activation = some_input(7, 1000), ActSpec(8, symmetric=False)
    if weight.to_int8() is None:
        assert why_not_int8(x, weight, activation) == "asymmetric 8-bit weights do not fit INT8"
        return
    exact, found = exact_product(x, weight, activation, None), linear_int8(x, weight, activation, None)
    if kind == "affine" or bits >= 5:
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=4e-6)
    else:
        assert sqnr_db(exact, found) > 25


@pytest.mark.parametrize("activation", [ActSpec(8), ActSpec(4), ActSpec(8, symmetric=False)])
@pytest.mark.parametrize("bits", [3, 4])
def test_the_int8_table_costs_under_a_twentieth_decibel(bits, activation):
    generator = torch.Generator().manual_seed(0)
    exact_weight, x = (torch.randn(n, 1152, generator=generator) for n in (256, 64))
    weight = QUANTIZERS["twin_log"](exact_weight, WeightSpec(bits, "twin_log"))
    exact = x.double() @ exact_weight.double().T
    reference, int8 = (sqnr_db(exact, f(x, weight, activation, None)) for f in (linear_reference, linear_int8))
    assert reference - int8 < 0.05


def test_a_large_zero_point_loses_nothing():
    """Inputs far from zero: sums beyond 2^24 must cancel exactly."""
    x = 5 + 0.01 * some_input(4, 4608)
    weight, activation = some_weight(8, width=4608), ActSpec(8, symmetric=False)
    weight = PackedWeight(weight.codes | 0xC0, weight.params, weight.shape, weight.spec)  # all positive and large
    exact = exact_product(x, weight, activation, None)
    torch.testing.assert_close(linear_int8(x, weight, activation, None).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [None, ActSpec(8), ActSpec(8, symmetric=False), ActSpec(8, "group", 9)])
@pytest.mark.parametrize("kind", ["affine", "twin_log"])
def test_the_dtype_of_the_input_is_kept(kind, activation, dtype):
    x, weight, bias = some_input(5, 63).to(dtype), some_weight(4, kind), some_bias().to(dtype)
    found = linear(x, weight, activation, bias)
    assert found.dtype == dtype
    exact = exact_product(x, weight, activation, bias)
    naive = torch.nn.functional.linear(x, weight.dequantize().to(dtype), bias).double()
    allowed = 2 * float((naive - exact_product(x, weight, None, bias)).abs().max()) + 1e-5
    allowed += 0.02 if why_not_int8(x, weight, activation) is None and kind == "twin_log" else 0  # the INT8 table
    assert float((found.double() - exact).abs().max()) <= allowed


@pytest.mark.parametrize("product", [linear_reference, linear_int8, linear])
def test_any_strides_will_do(product):
    weight, activation = some_weight(4), ActSpec(8, symmetric=False)
    wide = some_input(6, 5, 126)
    for x in (wide[..., ::2], some_input(63, 9).t(), wide[..., :63].transpose(0, 1), wide[::2, :, 63:]):
        assert not x.is_contiguous()
        expected = product(x.contiguous(), weight, activation, None)
        torch.testing.assert_close(product(x, weight, activation, None), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", [None, ActSpec(8), ActSpec(4, "sample", symmetric=False)])
@pytest.mark.parametrize("shape", [(0, 63), (2, 0, 63)])
def test_no_tokens(activation, shape):
    assert linear(torch.zeros(shape), some_weight(4), activation, some_bias()).shape == (*shape[:-1], 40)


def test_one_channel():
    x, weight = some_input(5, 1), some_weight(4, width=1)
    exact = exact_product(x, weight, ActSpec(8), None)
    torch.testing.assert_close(linear(x, weight, ActSpec(8), None).double(), exact, rtol=1e-5, atol=2e-6)


def test_a_token_of_zeros_gives_the_bias():
    x, bias = some_input(5, 63), some_bias()
    x[3] = 0
    for activation in (None, *ACTS[:4]):
        torch.testing.assert_close(linear(x, some_weight(4), activation, bias)[3], bias)


@pytest.mark.parametrize("compiled", ["0", "1"])
@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("tokens", [5, 513])
def test_groups_are_the_product_of_what_they_decode(tokens, decoded, compiled, monkeypatch):
    monkeypatch.setenv("DITQUANT_CPU_KERNELS", compiled)
    x, weight, activation = some_input(tokens, 72), some_weight(4, width=72, group_size=12), ActSpec(8, "group", 8)
    assert "groups" in why_not_int8(x, weight, activation)
    exact = exact_product(x, weight, activation, some_bias())
    found = linear(x, weight, activation, some_bias(), None, decoded)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=4e-6)


def test_a_cpu_without_a_fast_integer_product_takes_the_reference(monkeypatch):
    x, weight = some_input(5, 63), some_weight(4)
    monkeypatch.setenv("DITQUANT_CPU_KERNELS", "0")
    monkeypatch.setattr(MODULE, "CPU_HAS_INT8", False)
    monkeypatch.setattr(torch, "_int_mm", None)
    expected = linear_reference(x, weight, ActSpec(8), None)
    assert torch.equal(linear(x, weight, ActSpec(8), None), expected)


@pytest.fixture
def nothing_reported(monkeypatch):
    monkeypatch.setattr(report, "_reported", set())


@pytest.mark.usefixtures("nothing_reported")
def test_every_form_is_logged_once_with_its_reason(caplog, monkeypatch):
    x, grouped, plain = some_input(5, 63), some_weight(4, group_size=9), some_weight(4)
    with caplog.at_level(logging.INFO, logger="ditquant.kernels"):
        linear(x, plain, None, None)
        assert not caplog.records
        monkeypatch.setenv("DITQUANT_CPU_KERNELS", "0")
        for _ in range(3):
            linear(x, plain, ActSpec(8), None)
            linear(x, grouped, ActSpec(8), None)
        assert [r.getMessage() for r in caplog.records] == [
            "INT8 products by torch._int_mm: DITQUANT_CPU_KERNELS is 0",
            "the reference product is used: DITQUANT_CPU_KERNELS is 0",
        ]
        linear(x[:0], plain, ActSpec(8), None)
        assert len(caplog.records) == 3
        linear(x, grouped, ActSpec(8), None, None, True)
        assert caplog.records[3].getMessage() == "INT8 products in groups by torch._int_mm: DITQUANT_CPU_KERNELS is 0"


def test_bad_values_do_not_vanish():
    x = some_input(5, 63)
    x[2, 7] = float("nan")
    found = linear(x, some_weight(4), ActSpec(8), some_bias()).numpy()
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[[0, 1, 3, 4]]).all()
