"""Joint rounding lowers what the prediction feels, and is plain GPTQ where outputs do not depend on each other."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.formats.twin_log import codebook
from ditquant.quantizers import QUANTIZERS, gptq_joint, reads_curvature
from ditquant.quantizers.gptq_factor import choose_factor
from ditquant.quantizers.gptq_joint import round_jointly
from ditquant.quantizers.twin_log import fit_twin_log
from ditquant.specs import WeightSpec
from tests.quantizers.test_gptq import seen, some_inputs, some_weight

SPEC = WeightSpec(3, "twin_log")
gptq = QUANTIZERS["gptq"]


def curved(rows: int, seed: int = 1) -> torch.Tensor:
    """Curvature of outputs of which few combinations matter."""
    generator = torch.Generator().manual_seed(seed)
    felt = torch.randn(200, rows // 4, generator=generator) @ torch.randn(rows // 4, rows, generator=generator)
    g = felt + 0.3 * torch.randn(200, rows, generator=generator)
    return g.T @ g / 200


def cost(found, weight, stats, curvature):
    error = (found.dequantize() - weight).double()
    return float((curvature.double() @ error @ stats.gram.double() * error).sum())


def joint(weight, stats, curvature, **options):
    stats.curvature = curvature
    return gptq(weight, SPEC, stats, joint=True, **options)


@pytest.mark.parametrize(("rows", "width"), [(12, 63), (100, 63), (63, 130)])
def test_what_is_felt_is_less_than_with_columns_alone(rows, width):
    weight, stats, curvature = some_weight(rows, width), seen(some_inputs(width)), curved(rows)
    apart = cost(gptq(weight, SPEC, stats), weight, stats, curvature)
    assert cost(joint(weight, stats, curvature), weight, stats, curvature) < 0.5 * apart


def test_independent_outputs_give_the_codes_of_plain_gptq():
    weight, stats = some_weight(70, 150), seen(some_inputs(150))
    found = joint(weight, stats, torch.eye(70), gain=False)
    plain = gptq(weight, SPEC, stats, gain=False)
    assert float((found.unpack() != plain.unpack()).double().mean()) < 0.02  # ties fall to either side


def test_each_rounding_is_the_best_answer_to_all_before_it():
    """In the order of rounding, entry (i, k) is the level nearest to W + sum of s_ji E_jl r_lk / (s_ii r_kk)."""
    weight, stats, curvature = some_weight(6, 9), seen(some_inputs(9)), curved(6)
    inputs, outputs = (choose_factor(m, len(m), "natural", 0.01) for m in (stats.gram, curvature))
    books = codebook(fit_twin_log(weight, SPEC, inputs.error_weight()), 3)[:, 0]
    codes = round_jointly(weight, inputs, outputs, books)
    error = weight.double() - books.gather(1, codes.long()).double()
    r, s = (torch.linalg.inv(f.share().double()) for f in (inputs, outputs))  # R and S over their diagonals
    left = s.T @ error @ r  # every entry's own error, what those before it cost included
    for i in range(6):
        levels = books[i].double()
        for k in range(9):
            wanted = levels[codes[i, k].long()] + left[i, k]
            same_sign = levels[levels.sign() == wanted.sign()] if bool((levels != 0).all()) else levels
            assert abs(left[i, k]) <= (same_sign - wanted).abs().min() + 1e-5


@pytest.mark.parametrize("tile", [1, 7, 64, 200])
def test_tiles_change_nothing_but_noise(tile, monkeypatch):
    weight, stats, curvature = some_weight(70, 150), seen(some_inputs(150)), curved(70)
    first = cost(joint(weight, stats, curvature), weight, stats, curvature)
    monkeypatch.setattr(gptq_joint, "TILE", tile)
    assert cost(joint(weight, stats, curvature), weight, stats, curvature) == pytest.approx(first, rel=0.1)


def test_without_curvature_it_is_plain_gptq():
    weight, stats = some_weight(), seen(some_inputs())
    found, plain = gptq(weight, SPEC, stats, joint=True), gptq(weight, SPEC, stats)
    assert torch.equal(found.codes, plain.codes)
    assert reads_curvature({"joint": True}) and not reads_curvature({"joint": False}) and not reads_curvature({})


@pytest.mark.parametrize("spec", [WeightSpec(3), WeightSpec(3, "twin_log", 21)])
def test_other_formats_and_groups_are_refused(spec):
    with pytest.raises(DitQuantError, match="joint rounding is for format 'twin_log' without groups"):
        gptq(some_weight(), spec, seen(some_inputs()), joint=True)
