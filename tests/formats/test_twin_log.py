"""The code books of `twin_log` are those of its definition, rise, keep the sign, and fit into INT8."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scalar_books import FAMILIES, draw, sqnr_db
from ditquant.formats import FORMATS, PackedWeight
from ditquant.formats.twin_log import ETA_MAX, ETA_MIN, codebook, levels, signed_levels, unfold_shape
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import WeightSpec

TWIN_LOG = FORMATS["twin_log"]
BITS = range(2, 9)


def every_code(bits: int, rows: int = 1) -> torch.Tensor:
    return torch.arange(2**bits, dtype=torch.uint8).expand(rows, -1).contiguous()


def shapes() -> st.SearchStrategy[torch.Tensor]:
    """Any shape that `check` accepts, as it is stored."""
    unit = st.floats(0, 1)

    def build(log_eta: float, lo: float, other: float, skew: float) -> torch.Tensor:
        skew = torch.tensor(skew).half().float()
        hi = torch.stack([1 + skew, 1 - skew]).clamp(max=1)
        lo = (torch.tensor([lo, other]) * hi).half().float()
        lo = torch.where(lo > hi, torch.zeros(2), lo)
        eta = torch.tensor([2.0**log_eta]).clamp(ETA_MIN, ETA_MAX)
        return torch.cat([eta, lo, skew[None]]).half()

    return st.builds(build, st.floats(-14, 16), unit, unit, st.floats(-1, 1))


def defined_levels(eta: float, lo: float, hi: float, bits: int) -> np.ndarray:
    n = 2 ** (bits - 1)
    k = np.arange(n) / (n - 1)
    eta, lo, hi = np.float64(eta), np.float64(lo), np.float64(hi)
    return (lo + eta) * ((hi + eta) / (lo + eta)) ** k - eta


@pytest.mark.parametrize("bits", BITS)
@given(eta=st.floats(-14, 15.9), lo=st.floats(0, 1), hi=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_levels_are_the_definition(bits, eta, lo, hi):
    eta, lo, hi = (torch.tensor(v, dtype=torch.float32) for v in (2.0**eta, min(lo, hi), max(lo, hi)))
    found = levels(eta, lo, hi, bits).numpy()
    # the definition itself loses eta * 1e-16 where eta is large
    np.testing.assert_allclose(found, defined_levels(float(eta), float(lo), float(hi), bits), rtol=3e-6, atol=2e-7)


@pytest.mark.parametrize("bits", BITS)
@given(shape=shapes(), scale=st.floats(0, 100))
@settings(max_examples=40, deadline=None)
def test_all_codes_decode_rise_and_keep_their_sign(bits, shape, scale):
    params = {"scale": torch.tensor([[scale]]), "shape": shape[None, None]}
    spec = WeightSpec(bits, "twin_log")
    assert TWIN_LOG.check(params, spec) is None
    values = TWIN_LOG.decode(every_code(bits), params, spec)[0]
    n = 2 ** (bits - 1)
    positive, negative = values[:n], values[n:]
    assert bool(torch.isfinite(values).all())
    assert bool((positive >= 0).all() and (negative <= 0).all())
    slack = 1e-6 * scale
    assert bool((positive.diff() >= -slack).all() and (negative.diff() <= slack).all())
    assert torch.equal(values, codebook(params, bits)[0, 0])


@pytest.mark.parametrize("bits", BITS)
@given(shape=shapes())
@settings(max_examples=40, deadline=None)
def test_the_int8_table_stays_in_range_and_near(bits, shape):
    spec, params = WeightSpec(bits, "twin_log"), {"scale": torch.ones(1, 1), "shape": shape[None, None]}
    relative = signed_levels(shape, bits) * 127
    assert bool((relative.round().abs() <= 127).all())
    values, scale = TWIN_LOG.decode_int8(every_code(bits), params, spec)
    found = values[0] * scale[0]
    near = 2e-7 if bits >= 5 else 0.5 / 96 + 2e-7
    assert float((found - TWIN_LOG.decode(every_code(bits), params, spec)[0]).abs().max()) <= near


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_huge_eta_is_uniform_and_a_small_one_logarithmic(bits):
    n = 2 ** (bits - 1)
    hi, lo = torch.tensor(1.0), torch.tensor(0.125)
    uniform = levels(torch.tensor(ETA_MAX), lo, hi, bits).double()
    torch.testing.assert_close(uniform, torch.linspace(0.125, 1, n, dtype=torch.float64), rtol=0, atol=1e-5)
    logarithmic = levels(torch.tensor(ETA_MIN), lo, hi, bits).double()
    ratios = logarithmic[1:] / logarithmic[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 8 ** (1 / (n - 1))), rtol=1e-3, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_costs_under_a_twentieth_decibel(family, bits):
    weight = draw(family, 24, 1152)
    packed = QUANTIZERS["twin_log"](torch.from_numpy(weight), WeightSpec(bits, "twin_log"))
    values, scale = packed.to_int8()
    through_int8 = (values * scale[:, None]).numpy()
    if bits >= 5:
        np.testing.assert_allclose(through_int8, packed.dequantize().numpy(), rtol=1e-6)
    lost = sqnr_db(weight, packed.dequantize().numpy()) - sqnr_db(weight, through_int8)
    # 127 steps up to a row's outlier can be coarse for all else: few rows of student_t4 lose more than the others
    assert (np.median(lost) if family == "student_t4" else lost.mean()) < 0.05


@pytest.mark.parametrize("bits", [3, 4])
def test_the_number_of_int8_steps_is_better_than_the_largest(bits):
    weight = draw("laplace", 64, 1152)
    packed = QUANTIZERS["twin_log"](torch.from_numpy(weight), WeightSpec(bits, "twin_log"))
    values, scale = packed.to_int8()
    largest = torch.round(packed.dequantize() / packed.params["scale"] * 127) / 127 * packed.params["scale"]
    assert sqnr_db(weight, (values * scale[:, None]).numpy()).mean() > sqnr_db(weight, largest.numpy()).mean()


@pytest.mark.parametrize(("width", "group_size"), [(63, 21), (1000, 125), (24, 3)])
@pytest.mark.parametrize("bits", [3, 8])
def test_groups_decode_as_rows_do(bits, width, group_size):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, width, generator=generator)
    spec = WeightSpec(bits, "twin_log", group_size)
    grouped = QUANTIZERS["twin_log"](weight, spec)
    rows = PackedWeight.from_codes(
        grouped.unpack().reshape(-1, group_size),
        {"scale": grouped.params["scale"].view(-1, 1), "shape": grouped.params["shape"].view(-1, 1, 4)},
        WeightSpec(bits, "twin_log"),
    )
    assert torch.equal(grouped.dequantize(), rows.dequantize().view(4, width))
    assert grouped.to_int8() is None


def good_params() -> dict[str, torch.Tensor]:
    return {"scale": torch.ones(3, 1), "shape": torch.tensor([1.0, 0.1, 0.1, 0.25]).half().repeat(3, 1, 1)}


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        (None, float("nan"), "scales"),
        (None, float("inf"), "scales"),
        (None, -1.0, "scales"),
        (0, float("nan"), "eta"),
        (0, 0.0, "eta"),
        (0, -1.0, "eta"),
        (0, float("inf"), "eta"),
        (1, float("nan"), "lo"),
        (1, -0.01, "lo"),
        (1, 1.01, "lo"),
        (2, 0.76, "lo"),  # hi of the negative side is 0.75
        (3, float("nan"), "lo"),
        (3, 1.5, "lo"),
        (3, -1.5, "lo"),
    ],
)
def test_bad_parameters_are_refused(column, value, word):
    params, spec = good_params(), WeightSpec(4, "twin_log")
    assert TWIN_LOG.check(params, spec) is None
    (params["scale"] if column is None else params["shape"][..., column])[1, 0] = value
    assert word in TWIN_LOG.check(params, spec)


def test_unfold_shape_gives_the_larger_side_one():
    eta, lo, hi = unfold_shape(torch.tensor([[2.0, 0.25, 0.5, -0.25], [2.0, 0.25, 0.5, 0.25]]).half())
    assert hi.tolist() == [[0.75, 1.0], [1.0, 0.75]]
    assert eta.tolist() == [[2.0], [2.0]]
    assert lo.tolist() == [[0.25, 0.5], [0.25, 0.5]]
