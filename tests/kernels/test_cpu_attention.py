"""The compiled attention errs no more against float64 than torch's own in bfloat16."""

import logging
import sys

import pytest
import torch
from torch.nn import functional as F

from ditquant.kernels import attention, report
from ditquant.kernels.cpu.attention import attention_bfloat16, why_not_bfloat16
from ditquant.kernels.cpu.library import why_not_attention

built = pytest.mark.skipif(why_not_attention() is not None, reason=str(why_not_attention()))
SHAPES = [  # batch, heads, queries, keys, width
    *((1, 1, 1, 1, 8), (1, 2, 7, 9, 72), (2, 3, 100, 130, 64), (1, 2, 97, 513, 128), (1, 2, 192, 1100, 72)),
    *((1, 1, 50, 70, 33), (1, 1, 50, 64, 1), (1, 1, 13, 77, 256), (1, 1, 20, 30, 512)),
    *((2, 1, 31, 63, 16 * vectors) for vectors in range(1, 10)),
]


def some_heads(batch: int, heads: int, queries: int, keys: int, width: int, size: float = 3.0):
    generator = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(batch, n, heads, width, generator=generator) for n in (queries, keys, keys))
    return [x.bfloat16().transpose(1, 2) for x in (size * q, k, v)]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def agrees(q, k, v, mask=None, **options) -> None:
    """No more than 1.1 times the error of torch, whose sums are in float32 too."""
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), None if mask is None else mask.double(), **options
    )
    found, torchs = (f(q, k, v, mask, **options) for f in (attention, F.scaled_dot_product_attention))
    assert why_not_bfloat16(q, k, v, mask) is None
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    assert error(found, exact) <= 1.1 * error(torchs, exact) + 1e-5


@built
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape(shape, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agrees(*some_heads(*shape))
    finally:
        torch.set_num_threads(before)


@built
def test_any_strides_and_scale():
    q, k, v = some_heads(2, 3, 40, 50, 64)
    agrees(q.contiguous(), k, v.contiguous(), scale=0.3)
    agrees(q[..., ::2], k[..., ::2], v[..., ::2])
    agrees(q[:, 1:], k[:1, :2].expand(2, 2, 50, 64), v[:, :2])


@built
def test_large_scores_do_not_overflow():
    agrees(*some_heads(1, 2, 30, 600, 64, size=100))


@built
@pytest.mark.parametrize("keys", [9, 120, 700])
@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 1, 1), (1, 1, 1)])
def test_a_mask_of_the_keys(shape, keys):
    q, k, v = some_heads(2, 3, 40, keys, 72)
    mask = torch.zeros(*shape, keys, dtype=torch.bfloat16)
    for hidden in (-10000.0, -float("inf")):
        mask[:] = torch.randn(mask.shape, generator=torch.Generator().manual_seed(keys))
        mask[..., keys // 2 :] = hidden
        agrees(q, k, v, mask)
    mask[..., 3] = float("nan")
    assert bool(attention(q, k, v, mask).isnan().all())


@built
def test_a_query_that_sees_no_key_gives_zeros():
    q, k, v = some_heads(1, 2, 5, 600, 64)
    mask = torch.full((1, 2, 1, 600), -float("inf"), dtype=torch.bfloat16)
    assert not attention(q, k, v, mask).any()


@built
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(3))
def test_bad_values_do_not_vanish(which, value):
    heads = some_heads(1, 2, 13, 600, 64)
    heads[which][0, 0, 7, 5] = value
    found = attention(*heads)
    assert not bool(found[0, 0, 7].isfinite().all())
    assert bool(found[0, 1].isfinite().all())


def test_what_the_kernel_does_not_take_goes_to_torch():
    q, k, v = some_heads(1, 2, 30, 30, 64)
    mask = torch.zeros(1, 1, 30, 30, dtype=torch.bfloat16)
    calls = [
        ((q.float(), k.float(), v.float()), {}),
        ((q, k, v, mask), {}),
        ((q, k, v, mask[:, :, :1].bool()), {}),
        ((q, k, v), {"is_causal": True}),
        ((q, k[:, :1], v[:, :1]), {"enable_gqa": True}),
        ((q[:, :, :0], k, v), {}),
        ((q[0], k[0], v[0]), {}),
    ]
    for arguments, options in calls:
        found, truth = (f(*arguments, **options) for f in (attention, F.scaled_dot_product_attention))
        assert torch.equal(found.nan_to_num(), truth.nan_to_num())


@pytest.mark.parametrize("kind", [None, "float", "bool"])
def test_float16_is_attended_in_float32_where_torch_is_slow(kind, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["ditquant.kernels.attention"], "FLOAT16_IS_SLOW", True)
    monkeypatch.setattr(report, "_reported", set())
    q, k, v = (x.half() for x in some_heads(1, 2, 30, 40, 64))
    bias = torch.randn(1, 1, 30, 40, generator=torch.Generator().manual_seed(0)).half()
    mask = None if kind is None else bias if kind == "float" else bias > -1
    exact = mask if kind == "bool" or mask is None else mask.float()
    truth = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), exact, scale=0.3).half()
    with caplog.at_level(logging.INFO, logger="ditquant.kernels"):
        for _ in range(2):
            found = attention(q, k, v, mask, scale=0.3)
    assert found.dtype == torch.float16 and torch.equal(found, truth)
    assert not torch.equal(found, F.scaled_dot_product_attention(q, k, v, mask, scale=0.3)), "rounded once"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["attention by torch in float32 copies"]


def test_gradients_are_torchs():
    q, k, v = some_heads(1, 2, 30, 30, 64)
    grads = []
    for attend in (attention, F.scaled_dot_product_attention):
        x = q.detach().clone().requires_grad_()
        grads.append(torch.autograd.grad(attend(x, k, v).float().sum(), x)[0])
    assert torch.equal(*grads)


@built
def test_the_operator_keeps_torchs_rules():
    q, k, v = some_heads(1, 2, 30, 40, 64)
    torch.library.opcheck(attention_bfloat16, (q, k, v, torch.zeros(1, 1, 1, 40), 0.1))
