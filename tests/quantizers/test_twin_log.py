"""Laws of the quantizer `twin_log`: gain, scale, independence of rows, signs, zeros, weighting, determinism."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.scalar_books import draw, sqnr_db
from ditquant.errors import DitQuantError
from ditquant.formats import FORMATS, PackedWeight
from ditquant.formats.twin_log import codebook
from ditquant.quantizers import QUANTIZERS
from ditquant.quantizers.twin_log import ETAS, PERCENTILES, nearest
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats

quantize = QUANTIZERS["twin_log"]
WIDTHS = (63, 1000, 1152)


def spec(bits: int, group_size: int | None = None) -> WeightSpec:
    return WeightSpec(bits, "twin_log", group_size)


def some_weight(rows: int = 12, width: int = 1152, family: str = "gaussian", seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(draw(family, rows, width, seed))


def some_stats(width: int = 1152, rows: int = 256) -> LayerStats:
    """Inputs with a few loud channels, correlated."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, width, generator=generator) * torch.logspace(-2, 1, width)
    stats = LayerStats(width)
    stats.update(x + x.roll(1, dims=1))
    return stats


def same_bits(a: PackedWeight, b: PackedWeight) -> None:
    assert torch.equal(a.codes, b.codes)
    assert all(torch.equal(a.params[name], b.params[name]) for name in a.params)


@pytest.mark.parametrize("group_size", [None, 125])
@pytest.mark.parametrize("bits", range(2, 9))
def test_gain_is_one_without_data(bits, group_size):
    weight = some_weight(width=1000, family="laplace")
    found, exact = quantize(weight, spec(bits, group_size)).dequantize().double(), weight.double()
    torch.testing.assert_close((found * exact).sum(1), exact.square().sum(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gain_is_one_in_the_metric_of_the_inputs(bits):
    weight, stats = some_weight(), some_stats()
    exact = stats.sample.double() @ weight.double().T
    found = stats.sample.double() @ quantize(weight, spec(bits), stats).dequantize().double().T
    torch.testing.assert_close((found * exact).sum(0), exact.square().sum(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("exponent", [-40, -7, 1, 20, 60])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_scaling_by_a_power_of_two_scales_the_result_exactly(bits, exponent):
    weight = some_weight()
    base, scaled = quantize(weight, spec(bits)), quantize(weight * 2.0**exponent, spec(bits))
    assert torch.equal(base.codes, scaled.codes)
    assert torch.equal(base.params["shape"], scaled.params["shape"])
    assert torch.equal(base.params["scale"] * 2.0**exponent, scaled.params["scale"])


@pytest.mark.parametrize("factor", [0.3, 1.7, 123.4])
@pytest.mark.parametrize("bits", [3, 4])
def test_scaling_by_any_factor_scales_the_result(bits, factor):
    weight = some_weight()
    base, scaled = quantize(weight, spec(bits)), quantize(weight * factor, spec(bits))
    assert float((base.unpack() != scaled.unpack()).float().mean()) < 2e-3
    before, after = (sqnr_db(w, q) for w, q in ((weight, base.dequantize()), (weight * factor, scaled.dequantize())))
    np.testing.assert_allclose(before, after, atol=0.02)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_rows_are_independent(bits, width):
    weight = some_weight(300, width)  # more than one piece of the search
    together = quantize(weight, spec(bits))
    for row in (0, 131, 299):
        alone = quantize(weight[row : row + 1], spec(bits))
        assert torch.equal(alone.codes, together.codes[row : row + 1])
        assert torch.equal(alone.dequantize(), together.dequantize()[row : row + 1])
    other = weight * torch.rand(300, 1, generator=torch.Generator().manual_seed(0))
    other[131] = weight[131]
    assert torch.equal(quantize(other, spec(bits)).dequantize()[131], together.dequantize()[131])


def test_rows_are_independent_with_data():
    weight, stats = some_weight(300), some_stats()
    together, alone = quantize(weight, spec(3), stats), quantize(weight[131:132], spec(3), stats)
    assert torch.equal(alone.codes, together.codes[131:132])
    torch.testing.assert_close(alone.params["scale"], together.params["scale"][131:132], rtol=1e-5, atol=0)


@pytest.mark.parametrize("search", ["fit", "paper"])
@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_no_weight_changes_its_sign(bits, search):
    weight = some_weight(6, 1000, "laplace")
    found = quantize(weight, spec(bits), search=search).dequantize()
    assert bool((found * weight.sign() >= 0).all())


@pytest.mark.parametrize("search", ["fit", "paper"])
@pytest.mark.parametrize("bits", [3, 5])
def test_zero_rows_decode_to_zero(bits, search):
    weight = some_weight(5, 63)
    weight[2] = 0
    packed = quantize(weight, spec(bits), search=search)
    assert not packed.dequantize()[2].any()
    assert FORMATS["twin_log"].check(packed.params, packed.spec) is None
    assert bool(packed.dequantize()[[0, 1, 3, 4]].any(1).all())


@pytest.mark.parametrize("search", ["fit", "paper"])
@given(
    weight=hnp.arrays(
        "float32",
        st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 5, 9])),
        elements=st.sampled_from([0.0, -1.0, 1.0, 0.3]) | st.floats(-1e9, 1e9, width=32),
    ),
    bits=st.integers(2, 8),
)
@settings(deadline=None, max_examples=15)
def test_any_weight_gives_parameters_that_the_format_accepts(search, weight, bits):
    packed = quantize(torch.from_numpy(weight), spec(bits), search=search)
    assert FORMATS["twin_log"].check(packed.params, packed.spec) is None
    assert bool(torch.isfinite(packed.dequantize()).all())


@pytest.mark.parametrize("sign", [1, -1])
def test_one_signed_rows_use_their_side(sign):
    weight = sign * some_weight(4, 1000).abs()
    assert (sqnr_db(weight, quantize(weight, spec(4)).dequantize()) > 17).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_codes_are_the_nearest_of_the_sign(bits):
    weight = some_weight(3, 63, "laplace")
    packed = quantize(weight, spec(bits), gain=False)
    values = codebook(packed.params, bits)[:, 0].double()
    distance = (weight.double()[..., None] - values[:, None]).abs()
    n = 2 ** (bits - 1)
    distance[..., :n][weight < 0] = torch.inf
    distance[..., n:][weight > 0] = torch.inf
    found = (weight.double() - packed.dequantize().double()).abs()
    torch.testing.assert_close(found, distance.amin(-1), rtol=0, atol=1e-7)
    assert torch.equal(nearest(weight, packed.params, bits), packed.unpack())


def test_more_bits_are_better():
    weight = some_weight()
    quality = [sqnr_db(weight, quantize(weight, spec(bits)).dequantize()).mean() for bits in range(2, 9)]
    assert all(later > earlier + 2.5 for earlier, later in pairwise(quality))


@pytest.mark.parametrize("bits", [3, 4])
def test_the_weighted_fit_lowers_the_weighted_error(bits):
    weight, stats = some_weight(), some_stats()
    error_weight = stats.mean_square[None]

    def weighted_error(packed: PackedWeight) -> torch.Tensor:
        return (error_weight * (packed.dequantize() - weight).square()).sum(1)

    plain, weighted = (
        weighted_error(quantize(weight, spec(bits), gain=False)),
        weighted_error(quantize(weight, spec(bits), stats, gain=False)),
    )
    assert float(weighted.sum()) < 0.98 * float(plain.sum())
    assert bool((weighted < 1.02 * plain).all())


def test_equal_inputs_give_the_plain_fit():
    weight = some_weight()
    stats = LayerStats(1152)
    stats.update(torch.full((4, 1152), 2.0))
    same_bits(quantize(weight, spec(3), gain=False), quantize(weight, spec(3), stats, gain=False))


@pytest.mark.parametrize("with_data", [False, True])
def test_equal_bits_on_two_runs_and_any_number_of_threads(with_data):
    weight, stats = some_weight(40), some_stats() if with_data else None
    first = quantize(weight, spec(3), stats)
    same_bits(first, quantize(weight, spec(3), stats))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            same_bits(first, quantize(weight, spec(3), stats))
    finally:
        torch.set_num_threads(threads)


def test_paper_takes_its_bounds_from_the_grid_without_the_other_sign():
    weight = some_weight(4, 1000, "student_t4")
    params = quantize(weight, spec(4), search="paper").params
    rows = weight.double().numpy()
    tops = [[np.quantile(side[side > 0], PERCENTILES) for side in (row, -row)] for row in rows]
    skew = params["shape"][:, 0, 3].double().numpy()
    scale = params["scale"][:, 0].double().numpy()
    for side in (0, 1):  # one percentile for the whole matrix
        hi = scale * np.minimum(1, 1 + (skew if side == 0 else -skew))
        distance = np.abs(np.array([top[side] for top in tops]) - hi[:, None]) / scale[:, None]
        assert distance.max(0).min() < 2**-11
    low = params["shape"][:, 0, 1:3].double().numpy() * scale[:, None]
    least = np.array([[row[row > 0].min(), -row[row < 0].max()] for row in rows])
    np.testing.assert_allclose(low, least, rtol=2**-10, atol=scale.max() * 2**-24)
    eta = params["shape"][:, 0, 0].double().numpy() * scale
    assert min(np.abs(eta / e - 1).max() for e in ETAS[1:]) < 2**-10


def test_paper_depends_on_the_scale_and_the_fit_is_better():
    weight = some_weight(6)
    paper = [sqnr_db(weight, quantize(weight * c, spec(3), search="paper").dequantize() / c).mean() for c in (1, 1000)]
    assert abs(paper[0] - paper[1]) > 0.5
    assert sqnr_db(weight, quantize(weight, spec(3), gain=False).dequantize()).mean() > max(paper)


def test_an_unknown_search_names_the_known_ones():
    with pytest.raises(DitQuantError, match=r"unknown twin_log search 'papers'. Did you mean 'paper'.*fit, paper"):
        quantize(some_weight(1, 63), spec(3), search="papers")
