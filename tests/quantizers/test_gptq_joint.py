"""Joint rounding lowers what the prediction feels, and is plain GPTQ where outputs do not depend on each other."""

import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditquant.errors import DitQuantError
from ditquant.formats import FORMATS, PackedWeight
from ditquant.quantizers import QUANTIZERS, gptq_joint, reads_curvature
from ditquant.quantizers.gptq_factor import choose_factor
from ditquant.quantizers.gptq_joint import round_jointly
from ditquant.quantizers.gptq_rounding import ROUNDINGS
from ditquant.specs import WeightSpec
from tests.quantizers.test_gptq import seen, some_inputs, some_weight

SPEC = WeightSpec(3, "twin_log")
SPECS = [SPEC, WeightSpec(3), WeightSpec(3, symmetric=False)]
every_format = pytest.mark.parametrize("spec", SPECS, ids=["twin_log", "symmetric", "asymmetric"])
gptq = QUANTIZERS["gptq"]


def curved(rows: int, seed: int = 1) -> torch.Tensor:
    """Curvature of outputs of which few combinations matter."""
    generator = torch.Generator().manual_seed(seed)
    felt = torch.randn(200, rows // 4, generator=generator) @ torch.randn(rows // 4, rows, generator=generator)
    g = felt + 0.3 * torch.randn(200, rows, generator=generator)
    return g.T @ g / 200


def books(params, spec) -> torch.Tensor:
    """What every code of every row decodes to."""
    codes = torch.arange(2**spec.bits, dtype=torch.uint8).expand(len(params["scale"]), -1)
    return PackedWeight.from_codes(codes, params, spec).dequantize()


def cost(found, weight, stats, curvature):
    error = (found.dequantize() - weight).double()
    return float((curvature.double() @ error @ stats.gram.double() * error).sum())


def joint(weight, stats, curvature, spec=SPEC, **options):
    stats.curvature = curvature
    return gptq(weight, spec, stats, joint=True, **options)


@every_format
@pytest.mark.parametrize(("rows", "width"), [(12, 63), (100, 63), (63, 130)])
def test_what_is_felt_is_less_than_with_columns_alone(rows, width, spec):
    weight, stats, curvature = some_weight(rows, width), seen(some_inputs(width)), curved(rows)
    apart = cost(gptq(weight, spec, stats), weight, stats, curvature)
    assert cost(joint(weight, stats, curvature, spec), weight, stats, curvature) < 0.5 * apart


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [None, "mse"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_uniform_codes_of_every_width_and_clip_are_felt_less(bits, clip, symmetric):
    spec = WeightSpec(bits, symmetric=symmetric)
    for seed in range(3):
        weight, stats, curvature = some_weight(40, 63, seed) + 0.2, seen(some_inputs(seed=seed)), curved(40, seed)
        apart = cost(gptq(weight, spec, stats, clip=clip, gain=False), weight, stats, curvature)
        found = joint(weight, stats, curvature, spec, clip=clip, gain=False)
        assert cost(found, weight, stats, curvature) < (0.7 if bits == 3 else 0.3) * apart
        assert FORMATS["affine"].check(found.params, spec) is None and int(found.unpack().max()) < 2**bits


@every_format
def test_a_code_is_the_nearest_of_its_row_and_never_out_of_range(spec):
    weight, stats, curvature = 5 * some_weight(30, 63), seen(some_inputs()), curved(30)
    found = joint(weight, stats, curvature, spec, gain=False)
    assert int(found.unpack().max()) == 2**spec.bits - 1 and int(found.unpack().min()) == 0
    rounding = ROUNDINGS[spec.format](weight, spec, torch.ones(63), None)
    rounding.enter(0, weight.T)
    every = books(rounding.params, spec)
    wanted, rows = 9 * torch.randn(500, generator=torch.Generator().manual_seed(3)), torch.arange(500) % 30
    codes, rounded = rounding.round(wanted, rows)
    torch.testing.assert_close(rounded, every[rows].gather(1, codes[:, None].long())[:, 0])
    distance = (every[rows] - wanted[:, None]).abs()
    if spec.format == "twin_log":
        distance[every[rows].sign() != wanted.sign()[:, None]] = torch.inf
    torch.testing.assert_close((rounded - wanted).abs(), distance.amin(1))


def test_the_clip_of_a_uniform_weight_is_that_of_plain_gptq():
    weight, stats, curvature, spec = some_weight(40, 63) ** 3, seen(some_inputs()), curved(40), WeightSpec(3)
    plain = gptq(weight, spec, stats, clip="mse", gain=False)
    found = joint(weight, stats, curvature, spec, clip="mse", gain=False)
    assert torch.equal(found.params["scale"], plain.params["scale"])
    assert bool((found.params["scale"] < weight.abs().amax(1, keepdim=True) / 3).any())


class Largest(TorchDispatchMode):
    """Watches how many entries the largest tensor has that anything makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.entries = max(self.entries, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)), 0)
        return made


@pytest.mark.parametrize("symmetric", [True, False])
def test_eight_bits_hold_no_levels_of_every_weight(symmetric):
    weight, stats, curvature = some_weight(128, 96), seen(some_inputs(96)), curved(128)
    assert stats.gram is not None  # sums what it has gathered
    begin = time.process_time()
    with Largest() as largest:
        joint(weight, stats, curvature, WeightSpec(8, symmetric=symmetric), clip="mse")
    assert largest.entries <= 128 * 128  # the outputs' curvature; the levels of all rows would be 128 * 256
    assert time.process_time() - begin < 30  # about 1 s


@every_format
def test_independent_outputs_give_the_codes_of_plain_gptq(spec):
    weight, stats = some_weight(70, 150), seen(some_inputs(150))
    found = joint(weight, stats, torch.eye(70), spec, gain=False)
    plain = gptq(weight, spec, stats, gain=False)
    assert float((found.unpack() != plain.unpack()).double().mean()) < 0.02  # ties fall to either side


@every_format
def test_each_rounding_is_the_best_answer_to_all_before_it(spec):
    """In the order of rounding, entry (i, k) is the level nearest to W + sum of s_ji E_jl r_lk / (s_ii r_kk)."""
    weight, stats, curvature = some_weight(6, 9), seen(some_inputs(9)), curved(6)
    inputs, outputs = (choose_factor(m, len(m), "natural", 0.01) for m in (stats.gram, curvature))
    rounding = ROUNDINGS[spec.format](weight, spec, inputs.error_weight(), None)
    codes = round_jointly(weight, inputs, outputs, rounding)
    every = books(rounding.params, spec)
    error = weight.double() - every.gather(1, codes.long()).double()
    r, s = (torch.linalg.inv(f.share().double()) for f in (inputs, outputs))  # R and S over their diagonals
    left = s.T @ error @ r  # every entry's own error, what those before it cost included
    for i in range(6):
        levels = every[i].double()
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


@pytest.mark.parametrize("spec", [WeightSpec(3, group_size=21), WeightSpec(3, "twin_log", 21)])
def test_groups_are_refused(spec):
    with pytest.raises(DitQuantError, match=r"for weights without groups, the spec has groups of 21\. Leave one"):
        gptq(some_weight(), spec, seen(some_inputs()), joint=True)
