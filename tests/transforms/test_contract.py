"""Laws of every transform in the registry; a new one is tested by being registered."""

import json

import pytest
import torch
from torch import nn

from ditquant.errors import DitQuantError
from ditquant.transforms import FITTERS, TRANSFORMS, Transform
from tests.transforms.salient import salient, stats_of, weight

# fmt: off
WIDTHS = [
    63, 71, 72, 96, 128, 256, 320, 384, 1000, 1120, 1152, 1408, 1536, 1920, 2048, 2304, 2432, 3072, 3840, 4096, 4608,
    5120, 6144, 8960, 9728, 12288, 13824, 15360,
]
# fmt: on
KINDS = sorted(TRANSFORMS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def fitted(kind: str, width: int, rows: int = 8, **options) -> Transform:
    return FITTERS[kind](weight(rows, width), stats_of(salient(12, width)), **options)


def law_error(transform: Transform, x: torch.Tensor, w: torch.Tensor) -> tuple[float, float]:
    """RMS error of the product with and without the transform, against float64."""
    truth = x.double() @ w.double().T
    with_transform = transform(x) @ transform.absorb(w).T
    return tuple(float((y.double() - truth).square().mean().sqrt()) for y in (with_transform, x @ w.T))


@every_kind
@pytest.mark.parametrize("width", WIDTHS)
def test_transform_changes_no_product(kind: str, width: int):
    transform = fitted(kind, width)
    x, w = salient(16, width, draw=1), weight(64, width)
    y = transform(x.double()) @ transform.absorb(w.double()).T
    assert (y - x.double() @ w.double().T).abs().max() < 1e-10
    noise = torch.randn(16, width, generator=torch.Generator().manual_seed(2))
    error, naive = law_error(transform, noise.bfloat16(), w.bfloat16())
    assert error < 2 * naive


@every_kind
def test_float16_and_float32_are_within_twice_naive(kind: str):
    transform, w = fitted(kind, 384), weight(64, 384)
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(2))
    error, naive = law_error(transform, x.half(), w.half())
    assert error < 2 * naive
    error, _ = law_error(transform, x, w)
    assert error < 1e-6


@every_kind
def test_dtype_and_leading_shape_are_kept(kind: str):
    transform, x = fitted(kind, 96), salient(6, 96)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        y = transform(x.to(dtype).view(2, 3, 96))
        assert y.shape == (2, 3, 96) and y.dtype == dtype
        assert transform.absorb(x.to(dtype)).dtype == dtype
    assert torch.equal(transform(x.view(2, 3, 96)), transform(x).view(2, 3, 96))
    assert transform(x[:0]).shape == (0, 96)


@every_kind
def test_reload_is_equal_to_the_bit(kind: str):
    transform, x = fitted(kind, 1120), salient(4, 1120, draw=1)
    spec = transform.spec()
    assert spec.kind == kind
    again = TRANSFORMS[kind].empty(1120, **json.loads(json.dumps(dict(spec.options))))
    again.load_state_dict(transform.state_dict())
    again.check("layer")
    assert torch.equal(again(x), transform(x)) and torch.equal(again.absorb(x), transform.absorb(x))


@every_kind
def test_empty_state_is_refused_or_harmless(kind: str):
    empty = TRANSFORMS[kind].empty(256, **fitted(kind, 256).spec().options)
    try:
        empty.check("layer")
    except DitQuantError as error:
        assert "layer" in str(error)
    else:
        x, w = salient(4, 256).double(), weight(4, 256).double()
        assert (empty(x) @ empty.absorb(w).T - x @ w.T).abs().max() < 1e-10


@every_kind
def test_meta_construction_and_casts_keep_the_state(kind: str):
    transform = fitted(kind, 256)
    with torch.device("meta"):
        meta = TRANSFORMS[kind].empty(256, **transform.spec().options)
    state = transform.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in meta.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in state.items()
    }
    with pytest.raises(DitQuantError, match="found nothing"):
        meta.check("layer")
    before = {k: v.clone() for k, v in state.items()}
    after = transform.to(torch.bfloat16).state_dict()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)


@every_kind
def test_equal_arguments_give_equal_bits(kind: str):
    one, two = fitted(kind, 320), fitted(kind, 320)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@every_kind
def test_compiles_as_one_graph(kind: str):
    module, x = nn.Sequential(fitted(kind, 256), nn.Linear(256, 8).double()), salient(4, 256).double()
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))


@every_kind
def test_gradients_pass_after_inference(kind: str):
    transform, w = fitted(kind, 96), weight(8, 96).double()
    x = salient(4, 96).double()
    with torch.inference_mode():
        transform(x)
    x = x.clone().requires_grad_()
    (transform(x) @ transform.absorb(w).T).sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0).expand(4, 96))


@every_kind
def test_a_stored_spec_that_lies_is_refused(kind: str):
    make = TRANSFORMS[kind].empty
    stored = dict(fitted(kind, 384).spec().options)
    for extra in ({"blocks": 128}, {"in_features": 3}, {"cls": 1}, {"": None}):
        with pytest.raises(DitQuantError, match="unknown option"):
            make(384, **stored, **extra)
    if "block" in stored:
        for block in (None, 0, -128, 100, 128.0, True, "128", [128], 768):
            with pytest.raises(DitQuantError, match="block"):
                make(384, block=block)
        with pytest.raises(DitQuantError, match="block"):
            make(384)


@every_kind
def test_wrong_shapes_and_dtypes_are_refused(kind: str):
    for name, value in fitted(kind, 256).state_dict().items():
        for damage in (value[:-1], value.to(torch.int64)):
            transform = fitted(kind, 256)
            setattr(transform, name, nn.Parameter(damage, requires_grad=False))
            with pytest.raises(DitQuantError, match=name):
                transform.check("layer")


@pytest.mark.parametrize("kind", ["hadamard", "fast_dual_rotation", "smooth"])
def test_storage_is_small(kind: str):
    size = sum(t.numel() * t.element_size() for t in fitted(kind, 1152).state_dict().values())
    assert size * 8 / 1152**2 < 0.017  # bits a weight at width 1152
