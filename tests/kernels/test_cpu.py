"""The compiled kernels give the float64 product of what they decode, and the codes that torch gives."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from ditquant.formats import PackedWeight
from ditquant.formats.affine import Affine
from ditquant.kernels import Rotation, cpu, linear, linear_int8, quantize_activation, report
from ditquant.kernels.cpu import library
from ditquant.kernels.cpu.ops import linear_packed, padded, quantize_tokens
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec
from ditquant.transforms.block_rotation import rotate
from ditquant.transforms.signs import draw_signs, unpack_signs

built = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))
KINDS = [("affine", True), ("affine", False), ("twin_log", True)]
MODULE = sys.modules["ditquant.kernels.linear"]


def some_input(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.2
    return (x * torch.logspace(-1, 1, shape[-1])).to(dtype)


def some_weight(bits: int, kind: str = "affine", symmetric: bool = True, rows: int = 40, width: int = 63):
    weight = 0.03 * torch.randn(rows, width, generator=torch.Generator().manual_seed(bits))
    name = "rtn" if kind == "affine" else kind
    return QUANTIZERS[name](weight, WeightSpec(bits, kind, symmetric=symmetric))


def some_bias(rows: int = 40) -> torch.Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(2))


def exact_product(x: torch.Tensor, weight: PackedWeight, activation: ActSpec, bias: torch.Tensor | None = None):
    """Float64 product of the decoded tokens and the weight's INT8 form."""
    values, row_scale = weight.to_int8()
    decoded = values.double() * row_scale.double()[:, None]
    exact = quantize_activation(x, activation).dequantize().double() @ decoded.T
    return exact if bias is None else exact + bias.double()


@built
@pytest.mark.parametrize("act_symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("kind", "symmetric"), KINDS)
def test_every_width_and_format(kind, symmetric, bits, act_symmetric):
    if kind == "affine" and not symmetric and bits == 8:
        return  # has no INT8 form
    activation = ActSpec(8, symmetric=act_symmetric)
    for rows, width, tokens in ((40, 63, 7), (64, 64, 6), (130, 1000, 13), (1, 129, 1), (65, 3, 5)):
        x, weight, bias = some_input(tokens, width), some_weight(bits, kind, symmetric, rows, width), some_bias(rows)
        exact, whole = exact_product(x, weight, activation, bias), cpu.linear_rows(x, weight, activation, bias)
        torch.testing.assert_close(whole.double(), exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(whole, linear_int8(x, weight, activation, bias))
        assert torch.equal(whole, cpu.linear_rows(x, weight, activation, bias, decoded=True))


@built
@pytest.mark.parametrize("granularity", ["tensor", "sample", "token"])
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("shape", [(63,), (1, 63), (5, 63), (2, 5, 63), (2, 3, 4, 63)])
def test_every_shape_and_granularity(shape, bits, granularity):
    x, weight, bias = some_input(*shape), some_weight(4), some_bias()
    for activation in (ActSpec(bits, granularity, symmetric=s, clip=c) for s in (True, False) for c in (1.0, 0.8)):
        found = cpu.linear_rows(x, weight, activation, bias)
        assert found.shape == (*shape[:-1], 40)
        exact = exact_product(x, weight, activation, bias)
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_input_is_kept_and_rounded_once(dtype):
    x, weight, bias = some_input(9, 63, dtype=dtype), some_weight(4), some_bias().to(dtype)
    found = cpu.linear_rows(x, weight, ActSpec(8), bias)
    assert found.dtype == dtype
    exact = exact_product(x, weight, ActSpec(8), bias)
    torch.testing.assert_close(found.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=2e-6)


@built
@pytest.mark.parametrize("tokens", [*range(1, 14), 400])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_number_of_tokens_and_threads(tokens, threads):
    before = torch.get_num_threads()
    x, weight = some_input(tokens, 130), some_weight(3, "twin_log", rows=70, width=130)
    exact = exact_product(x, weight, ActSpec(8))
    torch.set_num_threads(threads)
    try:
        found = [cpu.linear_rows(x, weight, ActSpec(8), None, decoded=decoded) for decoded in (False, True)]
    finally:
        torch.set_num_threads(before)
    for y in found:
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@built
@pytest.mark.parametrize("groups", [None, 64])
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("tokens", [511, 513, 2049, 2100])
def test_parts_of_tokens_and_runs_of_tiles_cover_the_product(tokens, threads, groups):
    """Every output is written once, wherever chunks, parts and runs of tiles end, and whoever decoded a run."""
    spec = WeightSpec(4, "affine", groups)
    weight = QUANTIZERS["rtn"](torch.randn(201, 64, generator=torch.Generator().manual_seed(1)), spec)
    x, activation = some_input(tokens, 64), ActSpec(8, "group" if groups else "token", groups)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(linear(x, weight, activation, None))
    finally:
        torch.set_num_threads(before)
    exact = quantize_activation(x, activation).dequantize().double() @ weight.dequantize().double().T
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


FEWER = """
import torch
from ditquant.kernels import cpu
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec
weight = QUANTIZERS["rtn"](torch.randn(320, 64), WeightSpec(4, "affine"))
x = torch.randn(700, 64)
found = []
for threads in (1, 4):
    torch.set_num_threads(threads)
    found.append(cpu.linear_rows(x, weight, ActSpec(8), None))
print(torch.equal(*found), float(found[0].abs().min(1).values.max()) > 0)
"""


@built
def test_fewer_threads_than_were_asked_for_do_all_the_work():
    ran = subprocess.run(
        [sys.executable, "-c", FEWER], env=os.environ | {"OMP_THREAD_LIMIT": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["True", "True"]


@built
def test_any_strides_and_no_tokens():
    weight, activation, wide = some_weight(4), ActSpec(8, symmetric=False), some_input(6, 5, 126)
    for x in (wide[..., ::2], some_input(63, 9).t(), wide[..., :63].transpose(0, 1), wide[::2, :, 63:]):
        assert not x.is_contiguous()
        expected = cpu.linear_rows(x.contiguous(), weight, activation, None)
        assert torch.equal(cpu.linear_rows(x, weight, activation, None), expected)
    for shape in ((0, 63), (2, 0, 63)):
        assert cpu.linear_rows(torch.zeros(shape), weight, activation, None).shape == (*shape[:-1], 40)


@built
def test_large_sums_cancel_exactly():
    x = 5 + 0.01 * some_input(4, 4608) / 10
    weight = some_weight(8, width=4608)
    weight = PackedWeight(weight.codes | 0xC0, weight.params, weight.shape, weight.spec)  # all positive and large
    activation = ActSpec(8, symmetric=False)
    exact = exact_product(x, weight, activation)
    torch.testing.assert_close(cpu.linear_rows(x, weight, activation, None).double(), exact, rtol=1e-6, atol=0)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 15, 63, 64, 1000])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_codes_are_those_of_torch(bits, width, dtype):
    x = some_input(50, width, dtype=dtype)
    x[3] = 0
    for spec in (ActSpec(bits, symmetric=s, clip=c) for s in (True, False) for c in (1.0, 0.7)):
        values, scale, zero = quantize_tokens(x, None, 0, None, None, None, bits, spec.symmetric, spec.clip)
        truth = quantize_activation(x, spec)
        assert torch.equal(values[:, :width].to(torch.int16) - 128, truth.values[:, 0].to(torch.int16))
        assert torch.equal(scale, truth.scale.flatten())
        if truth.zero_point is not None:
            assert torch.equal(zero, truth.zero_point.flatten().to(torch.int32))


@built
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("block, width", [(2, 6), (4, 20), (8, 1000), (16, 48), (32, 96), (64, 192), (128, 1152)])
def test_a_rotation_is_that_of_float64(block, width, dual, smooth):
    rotated(block, width, dual, smooth)


@built
@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("block, width", [(256, 768), (1024, 1024), (4096, 8192)])
def test_a_wide_rotation_is_that_of_float64(block, width, dual):
    rotated(block, width, dual, True)


def rotated(block: int, width: int, dual: bool, smooth: bool) -> None:
    """Codes lie within half a step of the float64 rotation, and the scale is that of its largest value."""
    generator = torch.Generator().manual_seed(block)
    x = torch.randn(11, width, generator=generator)
    factor = (torch.rand(width, generator=generator) + 0.5).bfloat16()
    signs1, signs2 = (draw_signs(width, generator) for _ in range(2))
    order = torch.randperm(width, generator=generator).to(torch.int16)
    exact = x.double() * (factor.double() if smooth else 1)
    exact = rotate(exact * unpack_signs(signs1, width, torch.float64), block)
    if dual:
        exact = rotate(exact[:, order.long()] * unpack_signs(signs2, width, torch.float64), block)
    words = factor.view(torch.int16) if smooth else None
    extra = (order, signs2) if dual else (None, None)
    values, scale, zero = quantize_tokens(x, words, block, signs1, *extra, 8, True, 1.0)
    torch.testing.assert_close(scale.double(), exact.abs().amax(1) / 127, rtol=1e-5, atol=0)
    error = (values[:, :width].double() - 128) * scale.double()[:, None] - exact
    assert bool((error.abs() <= (0.5 + 1e-3) * scale.double()[:, None]).all())
    assert not zero.any()


@built
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bad_values_do_not_vanish(symmetric, value):
    x = some_input(5, 64)
    x[2, 7] = value
    signs = draw_signs(64, torch.Generator())
    for rotation in (None, Rotation(block=64, signs1=signs)):
        weight, activation = some_weight(4, width=64), ActSpec(8, symmetric=symmetric)
        found = cpu.linear_rows(x, weight, activation, some_bias(), rotation)
        assert not bool(torch.isfinite(found[2]).any())
        assert bool(torch.isfinite(found[[0, 1, 3, 4]]).all())


@built
def test_the_operators_keep_torchs_rules():
    x, weight = some_input(5, 63), some_weight(4)
    arguments = (x, None, 0, None, None, None, 8, True, 1.0)
    torch.library.opcheck(quantize_tokens, arguments)
    codes = quantize_tokens(*arguments)
    assert codes[0].shape == (5, padded(63))
    rest = (weight.codes, list(weight.params.values()), some_bias(), (40, 63), 4, "affine", True, False)
    torch.library.opcheck(linear_packed, (*codes, *rest, torch.bfloat16))


@built
def test_one_graph():
    weight = some_weight(4)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def product(x: torch.Tensor) -> torch.Tensor:
        return linear(x, weight, ActSpec(8), None, Rotation()) + 1

    for tokens in (5, 9):
        x = some_input(tokens, 63)
        torch.testing.assert_close(product(x), cpu.linear_rows(x, weight, ActSpec(8), None) + 1)


@pytest.mark.parametrize(
    "path, change",
    [
        ("DITQUANT_CPU_KERNELS is 0", lambda patch: patch.setenv("DITQUANT_CPU_KERNELS", "0")),
        (
            "this CPU has no AVX512-VNNI",
            lambda patch: patch.setattr(library, "_load", lambda: (None, "this CPU has no AVX512-VNNI")),
        ),
    ],
)
def test_without_the_library_torch_computes_and_says_so(path, change, monkeypatch, caplog):
    monkeypatch.setattr(MODULE, "CPU_HAS_INT8", True)
    monkeypatch.setattr(report, "_reported", set())
    change(monkeypatch)
    x, weight = some_input(5, 63), some_weight(4)
    with caplog.at_level(logging.INFO, logger="ditquant.kernels"):
        for _ in range(2):
            found = linear(x, weight, ActSpec(8), None)
    assert torch.equal(found, linear_int8(x, weight, ActSpec(8), None))
    assert [r.getMessage() for r in caplog.records] == [f"INT8 products by torch._int_mm: {path}"]


def test_a_library_that_does_not_fit_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert "not installed" in library._load.__wrapped__()[1]
    (tmp_path / f"_native{library.importlib.machinery.EXTENSION_SUFFIXES[0]}").write_text("no library")
    assert "cannot be loaded" in library._load.__wrapped__()[1]


@built
def test_what_the_library_does_not_take_goes_to_torch(monkeypatch):
    monkeypatch.setattr(MODULE, "CPU_HAS_INT8", True)
    weight = some_weight(4)
    assert "float64" in cpu.why_not_rows(some_input(5, 63).double(), weight)
    found = linear(some_input(5, 63).double(), weight, ActSpec(8), None)
    assert found.dtype == torch.float64
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(Affine, "int8_table")
        assert "'affine' has no int8_table" in cpu.why_not_rows(some_input(5, 63), weight)
        found = linear(some_input(5, 63), weight, ActSpec(8), None)
    assert torch.equal(found, linear_int8(some_input(5, 63), weight, ActSpec(8), None))
    wide = PackedWeight(weight.codes, weight.params, (40, 65537), weight.spec)
    assert "65536" in cpu.why_not_rows(some_input(5, 63), wide)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_a_gelu_ends_the_product(tokens, dtype):
    x, weight, bias = some_input(tokens, 63).to(dtype), some_weight(4), some_bias()
    exact = F.gelu(exact_product(x, weight, ActSpec(8), bias), approximate="tanh")
    found = cpu.linear_rows(x, weight, ActSpec(8), bias, gelu=True)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=rounding + 2e-6, atol=2e-6 + torch.finfo(dtype).tiny)


@built
def test_the_gelu_of_any_number():
    bias = torch.tensor([0, 1e-20, -1e-20, 1, -1, 3, -3, 6, -6, 12, -12, 1e4, -1e4, 1e30, -1e30, torch.nan])
    weight = QUANTIZERS["rtn"](torch.zeros(len(bias), 8), WeightSpec(8, "affine"))
    found = cpu.linear_rows(torch.ones(1, 8), weight, ActSpec(8), bias, gelu=True)[0]
    exact = F.gelu(bias.double(), approximate="tanh")
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=2e-8, equal_nan=True)
