"""The AVX2 kernels add products of 8 bits exactly, where 16 bits could overflow; on any CPU that has AVX2."""

import os
import subprocess
import sys

import pytest
import torch

from ditquant.formats import PackedWeight
from ditquant.formats.packing import pack
from ditquant.kernels import cpu, linear, linear_reference
from ditquant.kernels.cpu import library
from ditquant.kernels.cpu.groups import multiply_groups
from ditquant.kernels.cpu.linear import multiply
from ditquant.kernels.cpu.ops import padded
from ditquant.specs import ActSpec, WeightSpec

LIBRARY, REASON = library._open("_native_avx2", library._LIBRARIES["_native_avx2"])
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=str(REASON))
WIDTHS = (1, 4, 15, 63, 64, 1000, 4608)
MODULE = sys.modules["ditquant.kernels.linear"]  # the package exports a function of the same name


@pytest.fixture(autouse=True)
def only_avx2(monkeypatch):
    monkeypatch.setattr(library, "_load", lambda: (LIBRARY, None))
    monkeypatch.setattr(MODULE, "CPU_HAS_INT8", False)


def a_weight(values: torch.Tensor, bits: int, symmetric: bool = True, zero: int = 0, group: int | None = None):
    """An `affine` weight of integers, whose scales are 1."""
    rows, width = values.shape
    codes = values + (2 ** (bits - 1) if symmetric else zero)
    params = {"scale": torch.ones(rows, width // (group or width))}
    if not symmetric:
        params["zero_point"] = torch.full_like(params["scale"], zero, dtype=torch.uint8)
    spec = WeightSpec(bits, "affine", group, symmetric)
    return PackedWeight(pack(codes.to(torch.uint8), bits), params, (rows, width), spec)


def tokens_of(codes: torch.Tensor, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `quantize_tokens` returns for codes of -128 to 127, with scales 1 and zero points 0."""
    values = torch.nn.functional.pad(codes + 128, (0, padded(codes.shape[1]) - codes.shape[1]), value=128)
    scale = torch.ones(len(codes) * groups)
    return values.to(torch.uint8), scale, torch.zeros_like(scale, dtype=torch.int32)


def draw(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(low * 1000 + shape[-1]))


def check(codes: torch.Tensor, values: torch.Tensor, weight: PackedWeight) -> None:
    """The product is that of int64, rounded once to float32."""
    found = multiply(tokens_of(codes), weight, None, torch.float32)
    assert torch.equal(found, (codes @ values.T).to(torch.float32))
    assert torch.equal(found, multiply(tokens_of(codes), weight, None, torch.float32, decoded=True))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_any_codes_of_any_bits_and_width(bits, symmetric):
    if bits == 8 and not symmetric:
        return  # has no INT8 form
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (-3, 2**bits - 4)
    for width in WIDTHS:
        values = draw(low, high, 70, width)
        check(draw(-128, 127, 7, width), values, a_weight(values, bits, symmetric, zero=3))


@pytest.mark.parametrize("tokens", range(1, 8))
@pytest.mark.parametrize("code", [-128, -127, 127])
@pytest.mark.parametrize(
    "value, bits, zero",
    [(-128, 8, None), (127, 8, None), (-16, 5, None), (15, 4, 0), (-15, 4, 15), (31, 5, 0), (-32, 6, None)],
)
def test_sums_of_the_largest_codes(value, bits, zero, code, tokens):
    """All products have one sign, so that anything that saturates or wraps is seen."""
    for width in (*WIDTHS, 65536):
        values, codes = (torch.full((n, width), x) for n, x in ((9, value), (tokens, code)))
        check(codes, values, a_weight(values, bits, zero is None, zero or 0))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width, group", [(4, 4), (60, 12), (1000, 40), (1152, 128)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_codes_in_groups(symmetric, width, group, bits):
    if bits == 8 and not symmetric:
        return  # has no INT8 form
    for value in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (2**bits - 1, 1 - 2**bits):
        zero = 0 if value > 0 else 2**bits - 1
        for code in (-128, 127):
            values, codes = torch.full((70, width), value), torch.full((7, width), code)
            weight = a_weight(values, bits, symmetric, zero, group)
            for decoded in (False, True):
                found = multiply_groups(tokens_of(codes, width // group), weight, group, None, torch.float32, decoded)
                assert torch.equal(found, (codes @ values.T).to(torch.float32))


@pytest.mark.parametrize("group", [None, 16])
def test_torchs_integer_product_is_never_taken(group, monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", None)
    values, x = draw(-8, 7, 40, 64), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    weight, activation = a_weight(values, 4, group=group), ActSpec(8, "group" if group else "token", group)
    expected = linear_reference(x, weight, activation, None)
    for decoded in (False, True):
        torch.testing.assert_close(linear(x, weight, activation, None, None, decoded), expected, rtol=1e-4, atol=1e-4)
        found = linear(x.double(), weight, activation, None, None, decoded)
        assert torch.equal(found, linear_reference(x.double(), weight, activation, None))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(library.SWITCH, "0")
            assert torch.equal(linear(x, weight, activation, None, None, decoded), expected)


@pytest.mark.parametrize(
    "has_avx512, switch, reason",
    [
        (False, "", "no _native, and no _native_avx2"),
        (True, "", "no _native"),  # torch's integer product is left to such a CPU
        (True, "avx2", "no _native_avx2"),
    ],
)
def test_what_is_missing_is_named(has_avx512, switch, reason, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv(library.SWITCH, switch)
    monkeypatch.setattr(library, "_TORCH_HAS_AVX512", has_avx512)
    monkeypatch.setattr(library, "_open", lambda name, _: (None, f"no {name}"))
    assert library._load.__wrapped__() == (None, reason)


def test_the_switch_takes_this_library_where_there_is_a_faster_one():
    code = (
        "from ditquant.kernels import cpu; from ditquant.kernels.cpu import library, tiles; import torch;"
        "print(cpu.why_not(), hasattr(library.library(), 'ditquant_tiles'), cpu.why_not_attention(),"
        "tiles.why_not_map_tiles(torch.ones(1)), sep='|')"
    )
    environment = os.environ | {library.SWITCH: "avx2"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    only = "the compiled kernels for AVX2 do not have it"
    assert run.stdout.strip() == f"None|False|{cpu.why_not_attention()}|{only}"
