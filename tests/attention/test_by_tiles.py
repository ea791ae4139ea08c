"""The compiled attention over tiles against the whole map, and against the simulation of its integers."""

import logging

import pytest
import torch

from ditquant.attention import TokenGrid, attend
from ditquant.attention.by_tiles import attend_compiled, tile_lists, use_tiles
from ditquant.kernels.cpu.attention import attention_tiles
from ditquant.kernels.cpu.library import why_not_attention
from tests.attention.maps import GRIDS, full_map, naive_quantized, some_mask, some_qkv

built = pytest.mark.skipif(why_not_attention() is not None, reason=str(why_not_attention()))
SIX = torch.arange(6)
SIZES = (64, 72, 96, 128)


def compiled(q, k, v, grid, order, mask, qk_bits=None, pv_bits=None):
    assert use_tiles(q, k, v, qk_bits, pv_bits)
    keep = None if mask is None else mask | grid.text_tiles()
    return attend_compiled(q, k, v, grid.indices(order), keep, qk_bits, pv_bits)


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def agrees(grid: TokenGrid, order, size: int, mask, batch: int = 1, seed: int = 0) -> None:
    """In bfloat16 it errs less than twice as much as a masked softmax that is written out."""
    q, k, v = some_qkv(grid, len(order), size, batch, seed, torch.bfloat16)
    exact = full_map(q.double(), k.double(), grid, order, mask) @ v.double()
    naive = full_map(q, k, grid, order, mask) @ v
    out = compiled(q, k, v, grid, order, mask)
    assert out.dtype == torch.bfloat16 and out.shape == q.shape
    assert rms(out - exact) <= 2 * rms(naive - exact) + 1e-9


@built
@pytest.mark.parametrize("mask", ["all", "some", "one", None])
@pytest.mark.parametrize(
    ("grid", "size"), [(grid, SIZES[i % 4]) for i, grid in enumerate(GRIDS)] + [(GRIDS[3], s) for s in SIZES], ids=str
)
def test_any_order_and_mask(grid, size, mask):
    density = {"all": 1.0, "some": 0.5, "one": 0.0}
    agrees(grid, SIX, size, None if mask is None else some_mask(grid, 6, density[mask]))


@built
@pytest.mark.parametrize("seed", range(100))
def test_random_grids(seed):
    draw = torch.Generator().manual_seed(seed)
    f, h, w, text, heads, size, first = (
        int(torch.randint(low, high, (), generator=draw))
        for low, high in ((1, 5), (1, 12), (1, 20), (0, 80), (1, 4), (1, 140), (0, 2))
    )
    grid = TokenGrid(f, h, w, text, bool(first))
    order = torch.randint(6, (heads,), generator=draw)
    mask = some_mask(grid, heads, float(torch.rand((), generator=draw)), seed)
    agrees(grid, order, size, mask, 1 + seed % 2, seed)


@built
@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_that_are_left_out_are_never_read(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        grid = TokenGrid(1, 15, 20)
        q, k, v = some_qkv(grid, 2, 72, dtype=torch.bfloat16)
        k[:, :, 64:128], v[:, :, 64:128] = float("nan"), float("inf")
        mask = torch.ones(2, 5, 5, dtype=torch.bool)
        mask[:, :, 1] = False
        assert compiled(q, k, v, grid, torch.tensor([0, 0]), mask).isfinite().all()
    finally:
        torch.set_num_threads(before)


@built
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (8, 4), (4, 4), (8, None), (None, 8)])
@pytest.mark.parametrize("grid", [g for g in GRIDS if g.tokens > 64], ids=str)
def test_quantized_attention_errs_as_the_naive_simulation(grid, bits):
    dtype = torch.bfloat16 if None in bits else torch.float32
    q, k, v = some_qkv(grid, 6, 72, dtype=dtype)
    mask = some_mask(grid, 6, 0.6)
    out = compiled(q, k, v, grid, SIX, mask, *bits)
    exact = full_map(q.double(), k.double(), grid, SIX, mask) @ v.double()
    wide = [x[0].double() for x in (q, k, v)]
    # 12 bits stand for a product in bfloat16: more would not fit INT32
    naive = [naive_quantized(*(x[h] for x in wide), grid, h, mask[h], *(b or 12 for b in bits)) for h in range(6)]
    error, naive_error = rms(out - exact), rms(torch.stack(naive) - exact)
    assert out.dtype == dtype and 0.3 * naive_error < error < 2 * naive_error
    assert None in bits or rms(out[0].double() - torch.stack(naive)) < 0.1 * naive_error  # ties round either way


@built
def test_any_strides():
    grid = TokenGrid(2, 7, 9, text=11)
    wide = some_qkv(grid, 2, 3 * 24, dtype=torch.bfloat16)
    mask, order = some_mask(grid, 2, 0.5), torch.tensor([3, 1])
    for take in (lambda x: x[..., ::3], lambda x: x[..., :24], lambda x: x[..., 5:29].transpose(1, 2).contiguous()):
        q, k, v = (take(x) for x in wide)
        q, k, v = (x.transpose(1, 2) if x.shape[1] != 2 else x for x in (q, k, v))
        dense = [x.contiguous() for x in (q, k, v)]
        assert torch.equal(compiled(q, k, v, grid, order, mask), compiled(*dense, grid, order, mask))


def test_lists_of_kept_tiles():
    keep = some_mask(TokenGrid(1, 20, 20), 3, 0.4)
    tiles, starts = tile_lists(keep)
    rows = [(h, i) for h in range(3) for i in range(7)]
    for row, (h, i) in enumerate(rows):
        assert tiles[starts[row] : starts[row + 1]].tolist() == keep[h, i].nonzero().flatten().tolist()
    assert len(starts) == 22 and starts[-1] == keep.sum()


@built
@pytest.mark.parametrize("settings", [{}, {"qk_bits": 8, "pv_bits": 8}], ids=str)
def test_attend_takes_it(settings, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "ditquant.attention.reordered.attend_compiled", lambda *args: calls.append(0) or attend_compiled(*args)
    )
    grid = TokenGrid(2, 7, 9)
    mask = some_mask(grid, 2, 0.6)
    for dtype, count in ((torch.bfloat16, 1), (torch.float32, len(settings) // 2), (torch.float64, 0)):
        calls.clear()
        q, k, v = some_qkv(grid, 2, 16, dtype=dtype)
        attend(q, k, v, grid=grid, order=torch.tensor([1, 5]), mask=mask, **settings)
        assert len(calls) == count


def test_without_the_library_torch_attends_and_says_so_once(monkeypatch, caplog):
    from ditquant.kernels import report

    monkeypatch.setenv("DITQUANT_CPU_KERNELS", "0")
    monkeypatch.setattr(report, "_reported", set())
    caplog.set_level(logging.INFO, "ditquant.kernels")
    grid = TokenGrid(2, 7, 9)
    q, k, v = some_qkv(grid, 2, 16, dtype=torch.bfloat16)
    mask, order = some_mask(grid, 2, 0.6), torch.tensor([1, 5])
    exact = full_map(q.double(), k.double(), grid, order, mask) @ v.double()
    for _ in range(2):
        out = attend(q, k, v, grid=grid, order=order, mask=mask)
    assert rms(out - exact) < 0.01 * rms(exact)
    assert [line for line in caplog.messages if "tiles" in line] == [
        "attention over tiles by torch: DITQUANT_CPU_KERNELS is 0"
    ]


@built
def test_the_operator_keeps_torchs_rules():
    grid = TokenGrid(2, 7, 9)
    q, k, v = some_qkv(grid, 2, 16, dtype=torch.bfloat16)
    lists = tile_lists(some_mask(grid, 2, 0.6))
    torch.library.opcheck(attention_tiles, (q, k, v, grid.indices(torch.tensor([1, 5])).int(), *lists, 16, 8))
