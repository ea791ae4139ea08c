"""Codes and scales stand for the smoothed, rotated input, as exactly as those of torch do."""

import pytest
import torch

from ditquant.kernels import quantize_activation
from ditquant.kernels.triton.ops import padded, triton_quantize, triton_rotate
from ditquant.nn.fuse import fuse
from ditquant.specs import ActSpec
from ditquant.stats import LayerStats
from ditquant.transforms import FITTERS

CASES = [
    (128, 128, torch.float32),
    (144, 16, torch.bfloat16),
    (288, 32, torch.float16),
    (320, 64, torch.float32),
    (256, 128, torch.bfloat16),
]


def salient(tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(tokens, width, generator=generator) * (0.1 + 3 * torch.rand(width, generator=generator))


def fitted(width: int, block: int, kind: str, device: str):
    x, weight = salient(64, width), salient(24, width)
    stats = LayerStats(width)
    stats.update(x)
    options = {"block": block, "seed": 1}
    transforms = [FITTERS["smooth"](weight, stats), FITTERS[kind](weight, stats, **options)]
    return torch.nn.ModuleList(transforms).to(device)


def decode(codes: tuple, width: int, group: int, part: int) -> torch.Tensor:
    """What codes stand for, in float64."""
    values, scale, zero = (each.double() for each in codes)
    gap = padded(width, part)[1]
    values = values[:, : width // part * (part + gap)].unflatten(1, (-1, part + gap))[..., :part].flatten(1)
    if len(zero):
        values = values - zero.T.repeat_interleave(group, 1)
    return values * scale.T.repeat_interleave(group, 1)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", ["hadamard", "fast_dual_rotation"])
@pytest.mark.parametrize(("width", "block", "dtype"), CASES)
def test_rotated_codes(width, block, kind, dtype, device):
    transforms = fitted(width, block, kind, device)
    r = fuse(transforms, torch.device(device))
    assert r is not None
    symmetric = width != 288
    x = salient(37, width).to(device, dtype)
    codes = triton_quantize(*(x, r.factor, r.block, r.signs1, r.permutation, r.signs2, 8, symmetric, 1.0, width, width))
    exact = x.double()
    for transform in transforms:
        exact = transform(exact)
    spec = ActSpec(8, symmetric=symmetric)
    naive = quantize_activation(_through(transforms, x), spec).dequantize().double()
    assert relative(decode(codes, width, width, width), exact) < 1.1 * relative(naive, exact)
    assert codes[0].shape == (37, padded(width)[0]) and bool((codes[0][:, width:] == 0).all())


def _through(transforms, x: torch.Tensor) -> torch.Tensor:
    for transform in transforms:
        x = transform(x)
    return x


@pytest.mark.parametrize("kind", ["hadamard", "fast_dual_rotation"])
def test_rotation_alone(kind, device):
    transforms = fitted(320, 64, kind, device)
    r = fuse(transforms, torch.device(device))
    x = salient(7, 320).to(device)
    exact = _through(transforms, x.double())
    found = triton_rotate(x, r.factor, r.block, r.signs1, r.permutation, r.signs2)
    assert relative(found.double(), exact) < 2e-5


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "clip"), [(4, 1.0), (6, 0.8), (8, 1.0)])
@pytest.mark.parametrize(("width", "group", "part"), [(63, 63, 63), (1000, 1000, 1000), (96, 24, 24), (96, 48, 24)])
def test_plain_codes_are_those_of_torch(width, group, part, bits, symmetric, clip, device):
    x = (salient(5, width) + 0.3).to(device)
    spec = ActSpec(
        bits, "token" if group == width else "group", None if group == width else group, symmetric, clip=clip
    )
    found = triton_quantize(x, None, 0, None, None, None, bits, symmetric, clip, group, part)
    expected = quantize_activation(x, spec)
    torch.testing.assert_close(found[1], expected.scale[..., 0].T.contiguous(), rtol=1e-6, atol=0)
    step = float(found[1].max())
    difference = (decode(found, width, group, part) - expected.dequantize().double()).abs()
    assert float(difference.max()) < 1.01 * step  # a tie may round the other way
    assert float((difference > 1e-4 * step).double().mean()) < 0.01


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN and infinity
@pytest.mark.parametrize("symmetric", [True, False])
def test_special_tokens(symmetric, device):
    """Zeros have codes of zero, NaN and infinity are not hidden, nor do they touch other tokens."""
    x = salient(5, 256).to(device)
    x[1] = 0
    x[2, 7], x[3, 9] = float("nan"), float("inf")
    signs = torch.zeros(32, dtype=torch.uint8, device=device)
    for block, s in ((0, None), (128, signs)):
        codes = triton_quantize(x, None, block, s, None, None, 8, symmetric, 1.0, 256, 256)
        assert codes[1].isnan().tolist() == [[False, False, True, True, False]]
        assert bool((decode(codes, 256, 256, 256)[1] == 0).all())


def test_strides_and_no_tokens(device):
    wide = salient(6, 256).to(device)
    signs = torch.zeros(16, dtype=torch.uint8, device=device)
    for x in (wide[::2, 128:], wide[:, ::2], wide[:, :128].view(2, 3, 128).transpose(0, 1)):
        found = triton_quantize(x, None, 128, signs, None, None, 8, True, 1.0, 128, 128)
        expected = triton_quantize(x.contiguous(), None, 128, signs, None, None, 8, True, 1.0, 128, 128)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert triton_quantize(wide[:0], None, 0, None, None, None, 8, False, 1.0, 256, 256)[2].shape == (1, 0)
