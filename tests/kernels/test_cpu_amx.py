"""Products in the tile registers of AMX are those of AVX512: integers to the bit, bfloat16 as near to float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from ditquant.formats import PackedWeight
from ditquant.kernels import cpu
from ditquant.kernels.cpu import library
from ditquant.kernels.cpu.attention import attention_bfloat16, attention_tiles
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec


def amx(wanted: bool) -> bool:
    return bool(library.library().ditquant_use_amx(int(wanted)))


def has_amx() -> bool:
    return library.why_not_attention() is None and hasattr(library.library(), "ditquant_use_amx") and amx(True)


pytestmark = pytest.mark.skipif(not has_amx(), reason="this CPU, or its kernel, has no AMX")


@pytest.fixture(autouse=True)
def given_back():
    yield
    amx(True)


def both_ways(call) -> tuple[torch.Tensor, torch.Tensor]:
    found = []
    for wanted in (False, True):
        assert amx(wanted) == wanted
        found.append(call())
    return found[0], found[1]


def some_weight(rows: int, width: int, bits: int = 4) -> PackedWeight:
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width))
    return QUANTIZERS["rtn"](weight, WeightSpec(bits, "affine"))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [31, 32, 33, 64, 95, 96, 101, 300])
def test_integer_products_are_equal(tokens, dtype, symmetric):
    for rows, width in ((1, 64), (15, 63), (16, 1), (33, 65), (64, 128), (65, 130), (130, 1000)):
        x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        weight, bias = some_weight(rows, width), torch.randn(rows)
        without, by_amx = both_ways(lambda: cpu.linear_rows(x, weight, ActSpec(8, symmetric=symmetric), bias))  # noqa: B023
        assert torch.equal(without, by_amx)


@pytest.mark.parametrize("groups", [(64, 64), (128, 64), (64, None), (192, 192), (48, 48), (96, 64)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tokens", [31, 32, 70])
def test_products_in_groups_are_equal(tokens, symmetric, groups):
    width, x_group = 384, groups[1]
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens)) + 0.3
    weight = torch.randn(70, width, generator=torch.Generator().manual_seed(1))
    packed, bias = QUANTIZERS["rtn"](weight, WeightSpec(4, "affine", groups[0], symmetric)), torch.randn(70)
    activation = ActSpec(8, "group" if x_group else "token", x_group, symmetric)
    without, by_amx = both_ways(lambda: cpu.linear_groups(x, packed, activation, bias))
    assert torch.equal(without, by_amx)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize(("rows", "width"), [(640, 100), (401, 640), (225, 4000), (1217, 1100)])
def test_runs_of_tiles_are_equal(rows, width, threads, decoded, gelu):
    """One run for all tiles, runs of unequal length, a run that is one tile, and more tokens than those of a chunk."""
    x = torch.randn(2100 if rows == 401 else 150, width, generator=torch.Generator().manual_seed(2)).bfloat16()
    x[5] = 0
    weight, bias = some_weight(rows, width), torch.randn(rows)
    for symmetric in (True, False):
        activation = ActSpec(8, symmetric=symmetric)
        without, by_amx = both_ways(
            lambda: cpu.linear_rows(x, weight, activation, bias, decoded=decoded, gelu=gelu)  # noqa: B023
        )
        assert torch.equal(without, by_amx)


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize(("rows", "width"), [(640, 128), (401, 640), (225, 4096)])
def test_runs_of_tiles_in_groups_are_equal(rows, width, threads, decoded):
    x = torch.randn(150, width, generator=torch.Generator().manual_seed(2)) + 0.3
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    packed, bias = QUANTIZERS["rtn"](weight, WeightSpec(4, "affine", 128, False)), torch.randn(rows)
    activation = ActSpec(8, "group", 64, False)
    without, by_amx = both_ways(lambda: cpu.linear_groups(x, packed, activation, bias, decoded=decoded))
    assert torch.equal(without, by_amx)


def test_the_largest_codes_do_not_overflow():
    x, weight = torch.full((64, 65536), 127.0), torch.full((32, 65536), -127.0)
    packed = QUANTIZERS["rtn"](weight, WeightSpec(8, "affine"))
    found = both_ways(lambda: cpu.linear_rows(x, packed, ActSpec(8), None))
    assert torch.equal(*found)
    torch.testing.assert_close(found[1], x @ weight.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [8, 40, 64, 72, 96, 128, 200])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (33, 77), (130, 130), (200, 64)])
def test_attention_is_as_near_to_float64(queries, keys, width):
    generator = torch.Generator().manual_seed(width)
    shapes = [(2, 3, n, width) for n in (queries, keys, keys)]
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    bias = torch.where(torch.rand(2, 1, 1, keys, generator=generator) < 0.3, -torch.inf, 0.0)
    bias[..., 0] = 0
    for mask in (None, bias):
        biases = None if mask is None else mask.double()
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), biases)
        without, by_amx = (
            (y.double() - exact).norm() / exact.norm()
            for y in both_ways(lambda: attention_bfloat16(q, k, v, mask, width**-0.5))  # noqa: B023
        )
        assert by_amx < 1.1 * without + 1e-6


@pytest.mark.parametrize("width", [24, 64, 72, 128])
@pytest.mark.parametrize("tokens", [1, 63, 64, 128, 200])
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (8, 4)])
def test_attention_in_integers_is_as_near_to_float64(bits, tokens, width):
    generator = torch.Generator().manual_seed(width + tokens)
    q, k, v = (torch.randn(1, 2, tokens, width, generator=generator) for _ in "qkv")
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(2)]).int()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = both_ways(lambda: attention_tiles(q, k, v, order, None, None, *bits))
    without, by_amx = ((y.double() - exact).norm() / exact.norm() for y in found)
    if tokens <= 128:  # both look at two tiles at a time, and scale alike
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    assert by_amx < 1.1 * without + 1e-6


def test_attention_over_kept_tiles():
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 1, 192, 64, generator=generator).bfloat16() for _ in "qkv")
    order = torch.arange(192, dtype=torch.int32)[None]
    tiles, starts = torch.tensor([0, 2, 1, 0, 1], dtype=torch.int32), torch.tensor([0, 2, 3, 5])
    kept = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    mask = kept.repeat_interleave(64, 0).repeat_interleave(64, 1)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
    found = both_ways(lambda: attention_tiles(q, k, v, order, tiles, starts, 16, 16))
    without, by_amx = ((y.double() - exact).norm() / exact.norm() for y in found)
    assert by_amx < 1.1 * without


def test_torch_multiplies_by_amx_before_and_after():
    x = torch.randn(256, 256).bfloat16()
    before = x @ x
    attention_bfloat16(x[None, None], x[None, None], x[None, None], None, 1.0)
    assert torch.equal(x @ x, before)


def test_it_can_be_switched_off():
    code = "from ditquant.kernels.cpu.library import library; print(library().ditquant_uses_amx())"
    for switch, used in (("", "1"), ("avx512", "0")):
        env = {**os.environ, "DITQUANT_CPU_KERNELS": switch}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == used
