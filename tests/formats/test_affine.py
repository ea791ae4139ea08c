"""Format `affine` means scale * (code - zero_point), and its INT8 form loses nothing."""

import numpy as np
import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.formats import FORMATS, PackedWeight, layout
from ditquant.specs import WeightSpec


def some_packed(bits: int, symmetric: bool, group_size: int | None = None, rows: int = 6, width: int = 63):
    generator = torch.Generator().manual_seed(bits)
    spec = WeightSpec(bits, "affine", group_size, symmetric)
    groups = spec.groups(width)
    params = {"scale": torch.rand(rows, groups, generator=generator)}
    if not symmetric:
        params["zero_point"] = torch.randint(0, 2**bits, (rows, groups), generator=generator, dtype=torch.uint8)
    codes = torch.randint(0, 2**bits, (rows, width), generator=generator, dtype=torch.uint8)
    return codes, PackedWeight.from_codes(codes, params, spec)


@pytest.mark.parametrize("group_size", [None, 21, 9])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_decode_is_the_definition(bits, symmetric, group_size):
    codes, packed = some_packed(bits, symmetric, group_size)
    scale = packed.params["scale"].double().numpy()
    zero = 2 ** (bits - 1) if symmetric else packed.params["zero_point"].numpy().astype(int)[..., None]
    grouped = codes.numpy().astype(int).reshape(*scale.shape, -1)
    expected = (scale[..., None] * (grouped - zero)).reshape(codes.shape)
    np.testing.assert_allclose(packed.dequantize().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_int8_times_scale_is_the_weight(bits, symmetric):
    _, packed = some_packed(bits, symmetric)
    found = packed.to_int8()
    if bits == 8 and not symmetric:
        assert found is None
        return
    values, scale = found
    assert values.dtype == torch.int8
    assert torch.equal(values * scale[:, None], packed.dequantize())


def test_groups_have_no_int8_form():
    assert some_packed(4, True, 21)[1].to_int8() is None


@pytest.mark.parametrize("symmetric", [True, False])
def test_layout_is_what_is_stored(symmetric):
    _, packed = some_packed(3, symmetric, 21)
    stored = {"codes": packed.codes, **packed.params}
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == packed.layout()
    assert packed.nbytes == sum(t.numel() * t.element_size() for t in stored.values())


def test_a_group_that_does_not_divide_names_the_divisors():
    with pytest.raises(DitQuantError, match=r"group_size 128 does not divide in_features 1120 .*112, 140, 160"):
        layout(WeightSpec(4, group_size=128), 8, 1120)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_bad_scales_are_refused(value):
    _, packed = some_packed(4, True)
    assert FORMATS["affine"].check(packed.params, packed.spec) is None
    packed.params["scale"][3, 0] = value
    assert "scale" in FORMATS["affine"].check(packed.params, packed.spec)


def test_zero_points_beyond_the_codes_are_refused():
    _, packed = some_packed(3, False)
    assert FORMATS["affine"].check(packed.params, packed.spec) is None
    packed.params["zero_point"][2, 0] = 8
    assert "below 8" in FORMATS["affine"].check(packed.params, packed.spec)


def test_every_zero_point_of_eight_bits_is_a_code():
    _, packed = some_packed(8, False)
    packed.params["zero_point"][2, 0] = 255
    assert FORMATS["affine"].check(packed.params, packed.spec) is None
