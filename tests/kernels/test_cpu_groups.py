"""The compiled product in groups is the float64 product of what both sides decode to."""

import logging
import sys

import pytest
import torch

from ditquant.formats import PackedWeight
from ditquant.kernels import Rotation, cpu, kept_bytes, linear, linear_reference, quantize_activation, report
from ditquant.kernels.cpu.groups import linear_packed_groups
from ditquant.kernels.cpu.ops import quantize_tokens
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec
from ditquant.transforms.block_rotation import rotate
from ditquant.transforms.signs import draw_signs, unpack_signs

built = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))
MODULE = sys.modules["ditquant.kernels.linear"]  # the package exports a function of the same name
ROWS, WIDTH = 70, 192
# groups of the weight and of a token: equal, one within the other, neither, none on one side, ending within 64 channels
GROUPS = [(64, 64), (48, 48), (96, 32), (16, 48), (24, 16), (None, 12), (12, None), (4, 4), (192, 64)]


def some_input(*shape: int, shift: float = 0.3) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + shift
    return x * torch.logspace(-1, 1, shape[-1])


def some_weight(bits: int, group: int | None, symmetric: bool, width: int = WIDTH, shift: float = 0.0) -> PackedWeight:
    weight = 0.03 * torch.randn(ROWS, width, generator=torch.Generator().manual_seed(bits)) + shift
    return QUANTIZERS["rtn"](weight, WeightSpec(bits, "affine", group, symmetric))


def acts(group: int | None, symmetric: bool = False, bits: int = 8) -> ActSpec:
    return ActSpec(bits, "token" if group is None else "group", group, symmetric)


def exact_product(x: torch.Tensor, weight: PackedWeight, activation: ActSpec, bias: torch.Tensor | None = None):
    """Float64 product of what both sides decode to, in torch."""
    exact = quantize_activation(x, activation).dequantize().double() @ weight.dequantize().double().T
    return exact if bias is None else exact + bias.double()


def check(x: torch.Tensor, weight: PackedWeight, activation: ActSpec, rtol: float = 2e-5) -> None:
    bias = torch.randn(ROWS, generator=torch.Generator().manual_seed(2))
    exact = exact_product(x, weight, activation, bias)
    assert cpu.why_not_groups(x, weight, activation) is None
    found = cpu.linear_groups(x, weight, activation, bias)
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=float(exact.abs().max()) * 1e-6)
    assert torch.equal(found, cpu.linear_groups(x, weight, activation, bias, decoded=True))


@built
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("x_symmetric", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_all_kinds_of_groups(symmetric, x_symmetric, groups):
    for tokens in (1, 6, 13):
        check(some_input(tokens, WIDTH), some_weight(4, groups[0], symmetric), acts(groups[1], x_symmetric))


@built
@pytest.mark.parametrize("shift", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_all_bits_and_one_signed_groups(bits, symmetric, shift):
    if bits == 8 and not symmetric:
        return  # has no INT8 form
    check(some_input(7, WIDTH, shift=-shift), some_weight(bits, 48, symmetric, shift=shift), acts(48, bits=bits))


@built
@pytest.mark.parametrize("width, group", [(4, 4), (20, 4), (60, 20), (132, 12), (1000, 40), (1152, 128)])
def test_all_widths(width, group):
    check(some_input(9, width), some_weight(3, group, False, width), acts(group))


@built
@pytest.mark.parametrize("granularity", ["tensor", "sample", "token", "group"])
@pytest.mark.parametrize("shape", [(WIDTH,), (2, 7, WIDTH), (2, 3, 4, WIDTH)])
def test_all_shapes_and_granularities(shape, granularity):
    group = 48 if granularity == "group" else None
    for clip in (1.0, 0.8):
        spec = ActSpec(8, granularity, group, False, clip=clip)
        check(some_input(*shape), some_weight(4, 96, False), spec)


@built
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_numbers_of_tokens_and_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for tokens in (*range(2, 14), 400):
            check(some_input(tokens, WIDTH), some_weight(4, 96, False), acts(96))
    finally:
        torch.set_num_threads(before)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width, group", [(60, 12), (192, 64), (1152, 96)])
def test_codes_are_those_of_torch(width, group, dtype):
    x = some_input(33, width).to(dtype)
    x[3] = 0
    for spec in (ActSpec(8, "group", group, s, clip=c) for s in (True, False) for c in (1.0, 0.7)):
        values, scale, zero = quantize_tokens(x, None, 0, None, None, None, 8, spec.symmetric, spec.clip, group)
        truth = quantize_activation(x, spec)
        assert torch.equal(values[:, :width].to(torch.int16) - 128, truth.values.flatten(1).to(torch.int16))
        assert torch.equal(scale, truth.scale.flatten())
        if truth.zero_point is not None:
            assert torch.equal(zero, truth.zero_point.flatten().to(torch.int32))
        assert bool((values[:, width:] == 128).all()), "padding is always the same"


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_input_is_kept_and_rounded_once(dtype):
    x, weight = some_input(9, WIDTH).to(dtype), some_weight(4, 48, False)
    found, exact = cpu.linear_groups(x, weight, acts(48), None), exact_product(x, weight, acts(48))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-4)


@built
def test_a_rotation_comes_before_the_groups():
    generator = torch.Generator().manual_seed(0)
    x, weight, signs = some_input(5, WIDTH), some_weight(4, 48, False), draw_signs(WIDTH, generator)
    rotated = rotate(x.double() * unpack_signs(signs, WIDTH, torch.float64), 64).float()
    found = cpu.linear_groups(x, weight, acts(48), None, Rotation(block=64, signs1=signs))
    exact = cpu.linear_groups(rotated, weight, acts(48), None).double()
    error = (found.double() - exact).square().sum() / exact.square().sum()
    assert float(error) < 1e-4, "only a code here and there may be another"


@built
def test_large_sums_cancel_exactly():
    """All codes large and equal, inputs far from zero: sums beyond 2^24 must cancel."""
    x, weight = 5 + 0.01 * some_input(4, 4608) / 10, some_weight(8, 2304, True, 4608)
    weight = PackedWeight(weight.codes | 0xC0, weight.params, weight.shape, weight.spec)
    exact = exact_product(x, weight, acts(2304))
    found = cpu.linear_groups(x, weight, acts(2304), None)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@built
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_do_not_vanish(value):
    x = some_input(5, WIDTH)
    x[2, 7] = value
    found = cpu.linear_groups(x, some_weight(4, 48, False), acts(48), None)
    assert not bool(torch.isfinite(found[2]).any())
    assert bool(torch.isfinite(found[[0, 1, 3, 4]]).all())


@built
def test_the_operator_keeps_torchs_rules():
    x, weight = some_input(5, WIDTH), some_weight(4, 48, False)
    arguments = (x, None, 0, None, None, None, 8, False, 1.0, 48)
    torch.library.opcheck(quantize_tokens, arguments)
    rest = (weight.codes, list(weight.params.values()), None, weight.shape, 4, 48, False, 48, False, torch.bfloat16)
    torch.library.opcheck(linear_packed_groups, (*quantize_tokens(*arguments), *rest))


@built
def test_one_graph():
    weight = some_weight(4, 48, False)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def product(x: torch.Tensor) -> torch.Tensor:
        return linear(x, weight, acts(48), None, Rotation()) + 1

    for tokens in (5, 9):
        x = some_input(tokens, WIDTH)
        torch.testing.assert_close(product(x), cpu.linear_groups(x, weight, acts(48), None) + 1)


@built
def test_only_speed_and_few_tokens_keep_a_byte_a_weight():
    weight, before = some_weight(4, 48, False), kept_bytes()
    linear(some_input(5, WIDTH), weight, acts(48), None)
    linear(some_input(513, WIDTH), weight, acts(48), None, None, True)
    assert kept_bytes() == before
    linear(some_input(512, WIDTH), weight, acts(48), None, None, True)
    assert kept_bytes() - before >= ROWS * WIDTH


@built
def test_what_is_not_taken_goes_to_the_reference(monkeypatch, caplog):
    monkeypatch.setattr(report, "_reported", set())
    monkeypatch.setattr(MODULE, "CPU_HAS_INT8", True)
    x, weight = some_input(5, WIDTH), some_weight(4, 48, False)
    twin = QUANTIZERS["twin_log"](weight.dequantize(), WeightSpec(4, "twin_log", 48))
    eight = some_weight(8, 48, False)
    cases = {
        "'twin_log' has no integer steps": (x, twin, acts(48)),
        "asymmetric 8-bit": (x, eight, acts(48)),
        "groups of multiples of 4": (x, some_weight(4, 6, False), acts(6)),
        "float64": (x.double(), weight, acts(48)),
    }
    for part, case in cases.items():
        assert part in cpu.why_not_groups(*case)
        with caplog.at_level(logging.INFO, logger="ditquant.kernels"):
            assert torch.equal(linear(*case, None), linear_reference(*case, None))
        assert part in caplog.records[-1].getMessage()
    assert linear(x[:0], weight, acts(48), None).shape == (0, ROWS)
