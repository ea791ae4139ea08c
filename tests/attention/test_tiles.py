"""Streamed statistics of tiles and the scores of orders equal those of a map that is held in memory."""

import pytest
import torch

from ditquant.attention import ORDERS, Criterion, OrderScores, TokenGrid
from ditquant.attention.criterion import SELECT, score_orders
from ditquant.attention.tiles import tile_stats
from ditquant.errors import DitQuantError
from tests.attention.maps import GRIDS, block_diagonal, full_map, noise, some_qkv

VIDEO = TokenGrid(6, 8, 10)


def naive_tiles(q, k, grid: TokenGrid, order: int) -> list[list[torch.Tensor]]:
    """The tiles of each head's map under an order, as [R][T] pieces [N, rows, columns]."""
    index = grid.permutation(order)
    p = full_map(q, k, grid, [0] * q.shape[1]).flatten(0, 1)[:, index][:, :, index]
    return [list(rows.split(64, -1)) for rows in p.split(64, -2)]


def every(tiles, value) -> torch.Tensor:
    return torch.stack([torch.stack([value(tile) for tile in row], -1) for row in tiles], -2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_statistics_are_those_of_the_map(grid):
    q, k, _ = some_qkv(grid, 3, 12, batch=2)
    for order in grid.candidates():
        index = grid.permutation(order)
        stats = tile_stats(q.flatten(0, 1)[:, index], k.flatten(0, 1)[:, index], 3e-3)
        tiles = naive_tiles(q, k, grid, order)
        assert torch.allclose(stats.total, every(tiles, lambda t: t.sum((-1, -2))), atol=1e-12)
        assert torch.allclose(stats.largest, every(tiles, lambda t: t.amax((-1, -2))), atol=1e-12)
        assert torch.equal(stats.small, every(tiles, lambda t: (t < 3e-3).sum((-1, -2))))
        assert torch.equal(stats.entries, every(tiles, lambda t: torch.tensor(t[0].numel())))


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_statistics_in_float32_too(grid, size):
    q, k, _ = some_qkv(grid, 3, size, batch=2)
    q, k = (x.float().flatten(0, 1) for x in (q, k))
    stripes = torch.arange(grid.tiles).flip(0)[: 1 + grid.tiles // 2]
    found, exact = (tile_stats(x, y, 3e-3, stripes) for x, y in ((q, k), (q.double(), k.double())))
    assert found.total.dtype == torch.float32
    assert torch.allclose(found.total.double(), exact.total, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.largest.double(), exact.largest, rtol=1e-4, atol=1e-6)
    assert (found.small - exact.small).abs().sum() <= 1e-4 * exact.entries.sum() * len(q) + 2  # entries at eps
    assert torch.equal(found.entries, exact.entries)


def test_some_stripes_are_those_rows_of_tiles():
    q, k, _ = some_qkv(VIDEO, 2, 12)
    stripes = torch.tensor([1, 4, 7])
    some, all_ = tile_stats(q[0], k[0], 1e-3, stripes), tile_stats(q[0], k[0], 1e-3)
    for name in ("total", "largest", "small"):
        assert torch.equal(getattr(some, name), getattr(all_, name)[:, stripes])
    assert torch.equal(some.entries, all_.entries[stripes])


@pytest.mark.parametrize("grid", [VIDEO, TokenGrid(1, 13, 17, text=9)], ids=str)
def test_scores_are_their_definitions(grid):
    q, k, _ = some_qkv(grid, 2, 12, batch=2)
    eps = float(full_map(q, k, grid, [0, 0]).quantile(0.6))
    criterion = Criterion(eps=eps, sigma=0.6)
    scores = score_orders(q, k, grid, criterion, density=0.75)
    text = grid.text_tiles()
    for c, order in enumerate(grid.candidates()):
        tiles = naive_tiles(q, k, grid, order)
        sparse = every(tiles, lambda t: ((t < eps).double().mean((-1, -2)) >= 0.6).double()).mean((-1, -2))
        quant = every(tiles, lambda t: t.amax((-1, -2)) / t.mean((-1, -2))).mean((-1, -2))
        sums = every(tiles, lambda t: t.sum((-1, -2)))
        mass = []
        for each in sums:
            forced = text | (each == each.amax(-1, keepdim=True))
            left = round(0.75 * each.numel()) - int(forced.sum())
            mass.append((each[forced].sum() + each[~forced].sort(descending=True).values[:left].sum()) / each.sum())
        for found, naive in ((scores.sparse, sparse), (scores.quant, quant), (scores.mass, torch.stack(mass))):
            assert torch.allclose(found[:, c], naive.unflatten(0, (2, 2)).mean(0), rtol=1e-10)
    assert 0 < float(scores.sparse.mean()) < 1


def test_the_combined_score_by_hand():
    scores = OrderScores(torch.tensor([[0.5, 0.75]]), torch.tensor([[20.0, 60.0]]), torch.tensor([[0.9, 0.8]]))
    assert torch.allclose(scores.combined(0.5), torch.tensor([[0.5 * 2 / 3 + 0.125, 0.5 / 3 + 0.375]]))
    for select, alpha, best in (("combined", 0.5, 0), ("combined", 0.9, 1), ("sparse", 0.5, 1), ("quant", 0.5, 0)):
        assert scores.best(Criterion(select, alpha)).tolist() == [best]
    assert scores.best(Criterion("mass")).tolist() == [0]
    dense = OrderScores(torch.ones(1, 2), torch.tensor([[3.0, 2.0]]), torch.ones(1, 2))
    assert torch.isfinite(dense.combined(0.5)).all() and dense.best(Criterion()).tolist() == [1]
    assert dense.best(Criterion("sparse")).tolist() == [0]


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("sample", [1.0, 0.4])
def test_an_order_is_recognized_by_its_blocks_and_by_some_of_their_rows(order, sample):
    q, k = block_diagonal(VIDEO, order)
    scores = score_orders(q, k, VIDEO, Criterion(sample=sample), density=0.25)
    for select in SELECT:
        assert ORDERS[int(scores.best(Criterion(select)))] == ORDERS[order], select


def test_scattered_attention_counts_as_sparse():
    """The paper's sparse score has a blind side: what fills no tenth of any tile is sparse, however many it touches."""
    grid, place = TokenGrid(6, 12, 15), torch.arange(1080) % 180
    codes = torch.nn.functional.normalize(noise(180, 256), dim=-1)[place]
    # every token looks at its own place in the six frames
    q, k = ((12 * codes + 0.5 * noise(1080, 256, seed=seed))[None, None] for seed in (1, 2))
    scores = score_orders(q, k, grid, Criterion(), density=0.25)
    frames_last, frames_first = ORDERS.index("HWF"), ORDERS.index("FHW")
    assert scores.mass[0, frames_last] > 0.95 and scores.mass[0, frames_first] < 0.65
    assert int(scores.best(Criterion("sparse"))) == frames_first
    for select in ("quant", "mass"):
        assert ORDERS[int(scores.best(Criterion(select)))] not in ("FHW", "FWH")


@pytest.mark.parametrize("order", [0, 1])
def test_an_image_too(order):
    grid = TokenGrid(1, 24, 20, text=17)
    q, k = block_diagonal(grid, order)
    best = score_orders(q, k, grid, Criterion(), density=0.5).best(Criterion())
    assert grid.candidates()[int(best)] == order


def test_refusals():
    with pytest.raises(DitQuantError, match="Did you mean 'sparse'"):
        Criterion("spars")
    for bad in ({"alpha": 2}, {"eps": -1e-3}, {"sample": 0}, {"sigma": "0.9"}):
        with pytest.raises(DitQuantError, match=f"{next(iter(bad))} .* not allowed"):
            Criterion(**bad)
