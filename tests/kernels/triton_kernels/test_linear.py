"""Products by the Triton kernels are those of what the codes stand for: any bits, widths, groups, dtypes, epilogues."""

import pytest
import torch
from torch.nn import functional as F

from ditquant.formats import PackedWeight
from ditquant.kernels import fake_quantize, forget_decoded, kept_bytes, linear, linear_reference, triton
from ditquant.kernels.triton.ops import FEW_TOKENS, triton_linear, triton_quantize
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import ActSpec, WeightSpec

FEW, MANY = 5, FEW_TOKENS + 6
TOKEN = (ActSpec(8), ActSpec(4, symmetric=False))


def some_weight(bits: int, kind: str, width: int = 63, rows: int = 40, **options) -> PackedWeight:
    weight = 0.03 * torch.randn(rows, width, generator=torch.Generator().manual_seed(bits))
    return QUANTIZERS["rtn" if kind == "affine" else kind](weight, WeightSpec(bits, kind, **options))


def on(device: str, weight: PackedWeight) -> PackedWeight:
    params = {name: value.to(device) for name, value in weight.params.items()}
    return PackedWeight(weight.codes.to(device), params, weight.shape, weight.spec)


def some_input(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.2).to(device, dtype)


def exact_product(x, weight: PackedWeight, activation: ActSpec | None, bias, integer: bool = True) -> torch.Tensor:
    """Float64 product of what both sides decode to, the weight's INT8 form where the product is one of integers."""
    w = weight.dequantize().double()
    if activation is not None and integer and (form := weight.to_int8()) is not None:
        w = form[0].double() * form[1].double()[:, None]
    x = x.double() if activation is None else fake_quantize(x, activation).double()
    return x @ w.T + (0 if bias is None else bias.double())


@pytest.mark.parametrize(("bits", "tokens"), [*((bits, FEW) for bits in range(2, 9)), (3, MANY), (4, MANY), (6, MANY)])
@pytest.mark.parametrize("kind", ["affine", "twin_log"])
def test_all_bits(kind, bits, tokens, device):
    symmetric = bits % 3 == 0
    options = {"symmetric": symmetric} if kind == "affine" else {}
    weight, activation = on(device, some_weight(bits, kind, **options)), TOKEN[symmetric]
    x, bias = some_input(device, tokens, 63), some_input(device, 40)
    if weight.to_int8() is None:
        assert "do not fit INT8" in triton.why_not_triton(x, weight, activation)
        return
    assert triton.why_not_triton(x, weight, activation) is None
    found = linear(x, weight, activation, bias)
    torch.testing.assert_close(found.double(), exact_product(x, weight, activation, bias), rtol=1e-5, atol=4e-6)
    half = linear(x, weight, None, bias)
    torch.testing.assert_close(half.double(), exact_product(x, weight, None, bias), rtol=1e-5, atol=4e-6)


GROUPS = [(24, 24), (32, 64), (96, 32), (None, 48), (48, None), (192, 192)]


@pytest.mark.parametrize("groups", GROUPS)
def test_groups(groups, device):
    symmetric = groups[0] in (32, 192)
    weight = on(device, some_weight(4, "affine", 192, 20, group_size=groups[0], symmetric=symmetric))
    activation = ActSpec(8, "group" if groups[1] else "token", groups[1], symmetric=not symmetric or groups[1] == 48)
    x, bias = some_input(device, 7, 192), some_input(device, 20)
    assert triton.why_not_triton(x, weight, activation) is None
    exact = exact_product(x, weight, activation, bias)
    torch.testing.assert_close(linear(x, weight, activation, bias).double(), exact, rtol=1e-5, atol=4e-6)
    torch.testing.assert_close(
        linear(x, weight, None, bias).double(), exact_product(x, weight, None, bias), rtol=1e-5, atol=4e-6
    )


def test_twin_log_under_grouped_activations(device):
    weight, activation = on(device, some_weight(3, "twin_log", 96)), ActSpec(8, "group", 32)
    x = some_input(device, 5, 96)
    exact = exact_product(x, weight, activation, None)
    torch.testing.assert_close(linear(x, weight, activation, None).double(), exact, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(("granularity", "group"), [("tensor", 32), ("sample", None)])
def test_scales_of_several_tokens(granularity, group, device):
    weight = on(device, some_weight(4, "affine", 96, group_size=group))
    activation, x = ActSpec(8, granularity, symmetric=False), some_input(device, 2, 3, 96)
    exact = exact_product(x, weight, activation, None)
    torch.testing.assert_close(linear(x, weight, activation, None).double(), exact, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(("tokens", "dtype"), [(FEW, torch.bfloat16), (FEW, torch.float16), (MANY, torch.bfloat16)])
@pytest.mark.parametrize("activation", [None, ActSpec(8), ActSpec(8, "group", 32)])
def test_dtypes(tokens, activation, dtype, device):
    group = None if activation is None or activation.group_size is None else 64
    weight = on(device, some_weight(4, "affine" if group else "twin_log", 192, group_size=group))
    x, bias = some_input(device, 2, tokens, 192, dtype=dtype), some_input(device, 40, dtype=dtype)
    found = linear(x, weight, activation, bias)
    assert found.dtype == dtype and found.shape == (2, tokens, 40)
    exact = exact_product(x, weight, activation, bias)
    naive = F.linear(x, weight.dequantize().to(dtype), bias).double() - exact_product(x, weight, None, bias)
    # the interpreter cuts numbers off where a GPU rounds them
    allowed = 2 * naive.abs().max() + torch.finfo(dtype).eps * exact.abs().max()
    assert float((found.double() - exact).abs().max()) <= float(allowed)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_a_zero_point_cancels_exactly(tokens, device):
    """Inputs far from zero, weights all positive: sums of 2^24 are taken from each other."""
    x = 5 + 0.01 * some_input(device, tokens, 1152)
    weight, activation = some_weight(8, "affine", 1152, 8), ActSpec(8, symmetric=False)
    weight = on(device, PackedWeight(weight.codes | 0xC0, weight.params, weight.shape, weight.spec))
    exact = exact_product(x, weight, activation, None)
    torch.testing.assert_close(linear(x, weight, activation, None).double(), exact, rtol=1e-5, atol=0)


def test_the_epilogue(device):
    weight, tokens = on(device, some_weight(4, "twin_log", 128, 72)), 6
    x, bias = some_input(device, tokens, 128), some_input(device, 72)
    gate, residual = some_input(device, 2, 72) + 1, some_input(device, tokens, 72) - 2
    codes = triton_quantize(x, None, 0, None, None, None, 8, True, 1.0, 128, 128)
    args = (*codes, weight.codes, list(weight.params.values()), bias, weight.shape, 4, "twin_log", True, None, 128)
    found = triton_linear(*args, False, torch.float32, True, gate, residual)
    exact = F.gelu(exact_product(x, weight, ActSpec(8), bias), approximate="tanh")
    exact = residual.double() + gate.double().repeat_interleave(3, 0) * exact
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [None, 32])
def test_speed_mode_keeps_the_decoded_weight(group, device):
    weight = on(device, some_weight(4, "affine", 128, group_size=group, symmetric=False))
    x, activation = some_input(device, 5, 128), ActSpec(8, "group" if group else "token", group, symmetric=False)
    expected, before = linear(x, weight, activation, None), kept_bytes()
    for _ in range(2):
        assert torch.equal(linear(x, weight, activation, None, decoded=True), expected)
    assert 40 * 128 <= kept_bytes() - before <= 40 * 128 + 40 * 4 * 8
    weight.codes.zero_()
    again = linear(x, weight, activation, None, decoded=True)
    torch.testing.assert_close(again, linear_reference(x, weight, activation, None), rtol=1e-5, atol=4e-6)
    forget_decoded(weight.codes)
    assert kept_bytes() == before


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN
def test_any_strides_no_tokens_and_bad_values(device):
    weight, bias = on(device, some_weight(4, "twin_log")), some_input(device, 40)
    for activation in (ActSpec(8), None):
        for x in (
            some_input(device, 5, 126)[:, ::2],
            some_input(device, 63, 5).t(),
            some_input(device, 5, 99)[:, 7:70],
        ):
            expected = linear(x.contiguous(), weight, activation, bias)
            assert torch.equal(linear(x, weight, activation, bias), expected)
        assert linear(some_input(device, 2, 0, 63), weight, activation, bias).shape == (2, 0, 40)
        assert linear(some_input(device, 63), weight, activation, bias).shape == (40,)
        x = some_input(device, 5, 63)
        x[2, 7] = float("nan")
        assert linear(x, weight, activation, bias).isnan().any(1).tolist() == [False, False, True, False, False]
