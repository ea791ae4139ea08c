"""Every quantizer takes any floating-point matrix, and says what is wrong with anything else."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.formats import FORMATS
from ditquant.quantizers import QUANTIZERS, check_options
from ditquant.specs import WeightSpec

FORMATS_OF = {"rtn": ["affine"], "twin_log": ["twin_log"], "gptq": ["affine", "twin_log"]}
KINDS = [(kind, name) for kind, names in FORMATS_OF.items() for name in names]


def some_weight(rows: int = 5, width: int = 63) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "format_name"), KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(kind, format_name, value):
    weight = some_weight()
    weight[2, 3] = value
    with pytest.raises(DitQuantError, match="NaN or infinite"):
        QUANTIZERS[kind](weight, WeightSpec(4, format_name))


@pytest.mark.parametrize(("kind", "format_name"), KINDS)
@pytest.mark.parametrize(
    "weight", [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(3, 4, dtype=int)]
)
def test_what_is_no_matrix_is_refused(kind, format_name, weight):
    with pytest.raises(DitQuantError, match="floating-point matrix"):
        QUANTIZERS[kind](weight, WeightSpec(4, format_name))


def test_another_format_is_refused():
    with pytest.raises(DitQuantError, match="makes format 'affine', the spec asks for 'twin_log'"):
        QUANTIZERS["rtn"](some_weight(), WeightSpec(4, "twin_log"))
    with pytest.raises(DitQuantError, match="makes format 'twin_log', the spec asks for 'affine'"):
        QUANTIZERS["twin_log"](some_weight(), WeightSpec(4))
    with pytest.raises(DitQuantError, match=r"unknown format of quantizer 'gptq' 'twinlog'. Did you mean 'twin_log'"):
        QUANTIZERS["gptq"](some_weight(), WeightSpec(4, "twinlog"))


@pytest.mark.parametrize(("kind", "format_name"), KINDS)
def test_a_group_that_does_not_divide_names_the_divisors(kind, format_name):
    with pytest.raises(DitQuantError, match=r"group_size 8 does not divide in_features 63.*7, 9"):
        QUANTIZERS[kind](some_weight(), WeightSpec(4, format_name, 8))


@pytest.mark.parametrize(("kind", "format_name"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_as_float32(kind, format_name, dtype):
    weight, spec = some_weight().to(dtype), WeightSpec(4, format_name)
    found, expected = QUANTIZERS[kind](weight, spec), QUANTIZERS[kind](weight.float(), spec)
    assert torch.equal(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize(("kind", "format_name"), KINDS)
def test_a_transposed_weight_is_its_copy(kind, format_name):
    weight, spec = some_weight(63, 8).t(), WeightSpec(3, format_name)
    copy = weight.contiguous()
    assert torch.equal(QUANTIZERS[kind](weight, spec).dequantize(), QUANTIZERS[kind](copy, spec).dequantize())


@pytest.mark.parametrize(("kind", "format_name"), KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("width", "group_size"), [(63, None), (1000, None), (63, 9), (1000, 125), (1, None)])
def test_what_is_made_is_accepted_by_its_format(kind, format_name, bits, width, group_size):
    spec = WeightSpec(bits, format_name, group_size)
    packed = QUANTIZERS[kind](some_weight(3, width), spec)
    assert FORMATS[spec.format].check(packed.params, spec) is None
    stored = {"codes": packed.codes, **packed.params}
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == packed.layout()
    assert packed.dequantize().shape == (3, width)


@pytest.mark.parametrize(("kind", "format_name"), KINDS)
def test_the_weight_is_left_alone(kind, format_name):
    weight = some_weight()
    before = weight.clone()
    QUANTIZERS[kind](weight, WeightSpec(4, format_name))
    assert torch.equal(weight, before)


def test_an_unknown_option_is_answered_with_the_known_ones():
    check_options("twin_log", {"search": "fit"})
    with pytest.raises(DitQuantError, match=r"unknown option of quantizer 'twin_log' 'serach'.*'search'"):
        check_options("twin_log", {"serach": "fit"})


@pytest.mark.parametrize(
    ("kind", "option", "value", "allowed"),
    [
        ("rtn", "clip", "max", "mse, or none"),
        ("gptq", "clip", 0.9, "mse, or none"),
        ("gptq", "damping", -0.1, "a number from 0 to 1"),
        ("gptq", "damping", True, "a number from 0 to 1"),
        ("gptq", "block_size", 0, "an integer of at least 1"),
        ("gptq", "order", "reverse", "best, natural or activation"),
        ("gptq", "gain", 1, "true or false"),
        ("twin_log", "gain", "yes", "true or false"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_before_and_while_quantizing(kind, option, value, allowed):
    message = f"{option} {value!r} of quantizer {kind!r} is not allowed. Choose {allowed}"
    with pytest.raises(DitQuantError, match=message):
        check_options(kind, {option: value})
    with pytest.raises(DitQuantError, match=message):
        QUANTIZERS[kind](some_weight(), WeightSpec(4, FORMATS_OF[kind][0]), **{option: value})
