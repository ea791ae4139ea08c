"""Reordered, sparse and quantized attention against the whole map in memory."""

import pytest
import torch
from torch.nn import functional as F

from ditquant.attention import TokenGrid, attend
from ditquant.attention.rounding import by_token, compute_dtype
from ditquant.attention.stripes import attend_reference, attend_skipping, choose_kernel
from tests.attention.maps import GRIDS, coarsely_quantized, codes, full_map, naive_quantized, noise, some_mask, some_qkv

SIX = torch.arange(6)
KERNELS = {"reference": attend_reference, "skipping": attend_skipping}


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """Every call of `attend` takes this kernel of torch's."""
    monkeypatch.setattr("ditquant.attention.reordered.use_tiles", lambda *_: False)
    monkeypatch.setattr("ditquant.attention.reordered.choose_kernel", lambda *_: KERNELS[request.param])


@pytest.mark.parametrize(
    ("grid", "size"),
    [(grid, (64, 72, 96, 128)[i % 4]) for i, grid in enumerate(GRIDS)] + [(GRIDS[3], size) for size in (64, 72, 96)],
    ids=str,
)
def test_any_order_with_all_tiles_is_dense_attention(grid, size, kernel):
    q, k, v = some_qkv(grid, 6, size)
    everything = torch.ones(6, grid.tiles, grid.tiles, dtype=torch.bool)
    out = attend(q, k, v, grid=grid, order=SIX, mask=everything)
    assert (out - full_map(q, k, grid, SIX) @ v).abs().max() < 1e-10


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_without_a_mask_too(grid):
    q, k, v = some_qkv(grid, 6, 16)
    assert (attend(q, k, v, grid=grid, order=SIX) - full_map(q, k, grid, SIX) @ v).abs().max() < 1e-10


@pytest.mark.parametrize("seed", range(200))
def test_sparse_attention_is_the_masked_softmax(seed, monkeypatch):
    draw = torch.Generator().manual_seed(seed)
    f, h, w, text, heads, size, first = (
        int(torch.randint(low, high, (), generator=draw))
        for low, high in ((1, 5), (1, 9), (1, 10), (0, 80), (1, 4), (1, 20), (0, 2))
    )
    grid = TokenGrid(f, h, w, text, bool(first))
    order = torch.randint(6, (heads,), generator=draw)
    mask = some_mask(grid, heads, float(torch.rand((), generator=draw)), seed)
    q, k, v = some_qkv(grid, heads, size, batch=1 + seed % 2, seed=seed)
    exact = full_map(q, k, grid, order, mask) @ v
    for kernel in KERNELS.values():
        monkeypatch.setattr("ditquant.attention.reordered.choose_kernel", lambda *_, kernel=kernel: kernel)
        assert (attend(q, k, v, grid=grid, order=order, mask=mask) - exact).abs().max() < 1e-10


def test_tiles_with_text_are_kept_whatever_the_mask_says(kernel):
    grid = TokenGrid(2, 8, 8, text=70)
    q, k, v = some_qkv(grid, 2, 16)
    nothing = torch.zeros(2, grid.tiles, grid.tiles, dtype=torch.bool)
    out = attend(q, k, v, grid=grid, order=torch.tensor([5, 2]), mask=nothing)
    assert (out - full_map(q, k, grid, torch.tensor([5, 2]), nothing) @ v).abs().max() < 1e-10
    dense = full_map(q, k, grid, [0, 0]) @ v
    assert (out - dense)[:, :, :70].abs().max() < 1e-10
    assert (out - dense)[:, :, 128:].abs().max() > 1e-3


def test_dropped_tiles_are_not_computed(monkeypatch):
    from ditquant.attention import stripes

    columns, original = [], stripes._stripe
    monkeypatch.setattr(
        stripes, "_stripe", lambda q, k, *rest: columns.append(k.values.shape[-2]) or original(q, k, *rest)
    )
    grid = TokenGrid(1, 15, 20)
    q, k, v = some_qkv(grid, 1, 8)
    attend(q, k, v, grid=grid, order=torch.tensor([1]), mask=torch.eye(5, dtype=torch.bool)[None])
    assert columns == [64, 64, 64, 64, 44]


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (8, 4), (4, 4)])
@pytest.mark.parametrize("grid", [g for g in GRIDS if g.tokens > 64], ids=str)
def test_quantized_attention_is_the_naive_simulation(grid, bits, kernel):
    q, k, v = some_qkv(grid, 6, 24, dtype=torch.float32)
    mask = some_mask(grid, 6, 0.6)
    out = attend(q, k, v, grid=grid, order=SIX, mask=mask, qk_bits=bits[0], pv_bits=bits[1])[0].double()
    wide = [x[0].double() for x in (q, k, v)]
    naive = torch.stack([naive_quantized(*(x[h] for x in wide), grid, h, mask[h], *bits) for h in range(6)])
    exact = (full_map(*(x[None] for x in wide[:2]), grid, SIX, mask) @ wide[2])[0]
    error, naive_error = ((x - exact).square().mean().sqrt() for x in (out, naive))
    assert 0 < error < 1.1 * naive_error
    assert (out - naive).square().mean().sqrt() < 0.1 * naive_error  # codes at a tie may round either way


def test_finer_scales_err_less_where_values_are_alike(kernel):
    grid = TokenGrid(3, 5, 11, text=7)
    q, k, v = some_qkv(grid, 1, 24)
    v = v + 5 * noise(1, 1, 1, 24, seed=3)  # what all values of a channel share
    mask = some_mask(grid, 1, 0.6)
    out = attend(q, k, v, grid=grid, order=torch.tensor([2]), mask=mask, qk_bits=8, pv_bits=4)[0, 0]
    exact = (full_map(q, k, grid, [2], mask) @ v)[0, 0]
    coarse = coarsely_quantized(q[0, 0], k[0, 0], v[0, 0], grid, 2, mask[0], 8, 4)
    assert (out - exact).norm() < 0.5 * (coarse - exact).norm()


def test_in_float64_it_is_the_simulation_to_rounding(kernel):
    grid = TokenGrid(2, 7, 9, text=11)
    q, k, v = some_qkv(grid, 1, 24)
    mask = some_mask(grid, 1, 0.5)
    out = attend(q, k, v, grid=grid, order=torch.tensor([3]), mask=mask, qk_bits=4, pv_bits=4)
    naive = naive_quantized(q[0, 0], k[0, 0], v[0, 0], grid, 3, mask[0], 4, 4)
    assert (out[0, 0] - naive).abs().max() < 1e-10


@pytest.mark.parametrize("bits", [(8, None), (None, 8)])
def test_each_product_is_quantized_by_itself(bits, kernel):
    grid = TokenGrid(3, 5, 11, text=7)
    q, k, v = some_qkv(grid, 6, 24)
    exact = full_map(q, k, grid, SIX) @ v
    everything = torch.ones(6, grid.tiles, grid.tiles, dtype=torch.bool)
    both, one = (
        (attend(q, k, v, grid=grid, order=SIX, mask=everything, qk_bits=a, pv_bits=b) - exact).norm()
        for a, b in ((8, 8), bits)
    )
    assert 0.001 * exact.norm() < one < both


def test_smoothing_k_removes_an_offset_that_all_tokens_share(kernel):
    grid = TokenGrid(2, 8, 9)
    q, k, v = some_qkv(grid, 1, 32)
    mask = some_mask(grid, 1, 0.7)
    settings = {"grid": grid, "order": torch.tensor([4]), "mask": mask, "qk_bits": 8, "pv_bits": 8}
    plain, shifted = attend(q, k, v, **settings), attend(q, k + 1000 * noise(1, 1, 1, 32), v, **settings)
    assert (plain - shifted).abs().max() < 1e-6


@pytest.mark.parametrize("size", [64, 1040, 1201])
def test_sums_of_codes_are_those_of_int32(size):
    x, y = noise(1, 1, 64, size, dtype=torch.float32).sign(), noise(1, 1, 64, size, seed=1, dtype=torch.float32).sign()
    y[..., 0, :] = x[..., 0, :]  # the largest sum there is; at size 1201 it is odd and beyond 2^24
    wide = compute_dtype(x, 8)
    a, b = by_token(x.to(wide), 8), by_token(y.to(wide), 8)
    product = (a.values @ b.values.mT)[0, 0]
    integers = codes(x[0, 0], 8)[0] @ codes(y[0, 0], 8)[0].T
    assert torch.equal(product.to(torch.int32), integers) and torch.equal(product, product.round())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"qk_bits": 8, "pv_bits": 8}, {"sparse": True}], ids=str)
def test_the_dtype_stays(dtype, settings):
    grid = TokenGrid(2, 7, 9)
    q, k, v = some_qkv(grid, 2, 16, dtype=dtype)
    order, settings = torch.tensor([1, 5]), dict(settings)
    mask = some_mask(grid, 2, 0.8) if settings.pop("sparse", False) else None
    out = attend(q, k, v, grid=grid, order=order, mask=mask, **settings)
    assert out.dtype == dtype and out.shape == q.shape
    exact = full_map(q.double(), k.double(), grid, order, mask) @ v.double()
    naive = (
        F.scaled_dot_product_attention(q, k, v).double() - full_map(q.double(), k.double(), grid, order) @ v.double()
    )
    allowed = 0.1 * exact.norm() if settings else 2 * naive.norm() + 1e-12
    assert (out.double() - exact).norm() <= allowed


def test_nothing_of_a_frame_that_is_zero_is_lost(kernel):
    grid = TokenGrid(1, 10, 10)
    q, k, v = (torch.zeros(1, 1, 100, 8) for _ in range(3))
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    assert not attend(q, k, v, grid=grid, order=torch.tensor([0]), mask=mask, qk_bits=8, pv_bits=4).any()


def test_the_kernel_that_is_chosen():
    assert choose_kernel("cpu", True) is attend_skipping
    assert choose_kernel("cuda", True) is choose_kernel("cpu", False) is attend_reference
