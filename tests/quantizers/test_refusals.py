"""Every quantizer takes any floating-point matrix, and says what is wrong with anything else."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.formats import FORMATS
from ditquant.quantizers import QUANTIZERS, check_options
from ditquant.specs import WeightSpec

FORMAT_OF = {"rtn": "affine", "twin_log": "twin_log"}
KINDS = sorted(FORMAT_OF)


def some_weight(rows: int = 5, width: int = 63) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(kind, value):
    weight = some_weight()
    weight[2, 3] = value
    with pytest.raises(DitQuantError, match="NaN or infinite"):
        QUANTIZERS[kind](weight, WeightSpec(4, FORMAT_OF[kind]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "weight", [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(3, 4, dtype=int)]
)
def test_what_is_no_matrix_is_refused(kind, weight):
    with pytest.raises(DitQuantError, match="floating-point matrix"):
        QUANTIZERS[kind](weight, WeightSpec(4, FORMAT_OF[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_another_format_is_refused(kind):
    other = "twin_log" if FORMAT_OF[kind] == "affine" else "affine"
    with pytest.raises(DitQuantError, match=f"makes format '{FORMAT_OF[kind]}', the spec asks for '{other}'"):
        QUANTIZERS[kind](some_weight(), WeightSpec(4, other))


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_does_not_divide_names_the_divisors(kind):
    with pytest.raises(DitQuantError, match=r"group_size 8 does not divide in_features 63.*7, 9"):
        QUANTIZERS[kind](some_weight(), WeightSpec(4, FORMAT_OF[kind], 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_as_float32(kind, dtype):
    weight, spec = some_weight().to(dtype), WeightSpec(4, FORMAT_OF[kind])
    found, expected = QUANTIZERS[kind](weight, spec), QUANTIZERS[kind](weight.float(), spec)
    assert torch.equal(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("kind", KINDS)
def test_a_transposed_weight_is_its_copy(kind):
    weight, spec = some_weight(63, 8).t(), WeightSpec(3, FORMAT_OF[kind])
    copy = weight.contiguous()
    assert torch.equal(QUANTIZERS[kind](weight, spec).dequantize(), QUANTIZERS[kind](copy, spec).dequantize())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("width", "group_size"), [(63, None), (1000, None), (63, 9), (1000, 125), (1, None)])
def test_what_is_made_is_accepted_by_its_format(kind, bits, width, group_size):
    spec = WeightSpec(bits, FORMAT_OF[kind], group_size)
    packed = QUANTIZERS[kind](some_weight(3, width), spec)
    assert FORMATS[spec.format].check(packed.params, spec) is None
    stored = {"codes": packed.codes, **packed.params}
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == packed.layout()
    assert packed.dequantize().shape == (3, width)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_left_alone(kind):
    weight = some_weight()
    before = weight.clone()
    QUANTIZERS[kind](weight, WeightSpec(4, FORMAT_OF[kind]))
    assert torch.equal(weight, before)


def test_an_unknown_option_is_answered_with_the_known_ones():
    check_options("twin_log", {"search": "fit"})
    with pytest.raises(DitQuantError, match=r"unknown option of quantizer 'twin_log' 'serach'.*'search'"):
        check_options("twin_log", {"serach": "fit"})
