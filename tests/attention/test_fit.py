"""Fitting a plan: one threshold for the whole model, the density that was asked for, the same plan every time."""

from functools import cache

import pytest
import torch

from ditquant.attention import Criterion, TokenGrid, attend, fit_attention, load_plan, save_plan, step_bins
from ditquant.attention.masks import select_tiles
from ditquant.errors import DitQuantError
from tests.attention.maps import block_diagonal, full_map, some_qkv

GRID = TokenGrid(5, 9, 11, text=9)
ORDERS_WANTED = torch.tensor([[5, 0, 3], [1, 4, 2]])


@cache
def structured(grid: TokenGrid = GRID, bins: int = 2) -> list:
    """Records of two blocks of three heads whose maps are blocks under ORDERS_WANTED, weaker from bin to bin."""
    records = []
    for bin_ in range(bins):
        for block, orders in enumerate(ORDERS_WANTED.tolist()):
            heads = [block_diagonal(grid, o, seed=7 * block + i, strength=12 - bin_) for i, o in enumerate(orders)]
            records.append((bin_, block, *(torch.cat([head[j] for head in heads], 1) for j in range(2))))
    return records


def random_sums(grid: TokenGrid, keys, heads: int = 2, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.rand(heads, grid.tiles, grid.tiles, generator=generator) ** 4 * 64 for key in keys}


@pytest.mark.parametrize("density", [0.4, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("grid", [TokenGrid(5, 7, 31), TokenGrid(1, 20, 33, text=70), TokenGrid(1, 1, 1)], ids=str)
def test_the_largest_tiles_of_the_whole_model_are_kept(grid, density):
    sums = random_sums(grid, [(1, 0), (0, 1), (0, 0), (1, 1)])
    count = 8 * grid.tiles**2
    if grid.tiles == 1:
        density = 1.0
    masks = select_tiles(sums, grid, density)
    kept = torch.stack([masks[key] for key in sums])
    values = torch.stack(list(sums.values()))
    assert int(kept.sum()) == round(density * count)
    assert kept.any(-1).all() and (kept | ~grid.text_tiles()).all()
    free = ~grid.text_tiles() & (values < values.amax(-1, keepdim=True))
    if (kept & free).any() and (~kept).any():
        assert values[kept & free].min() > values[~kept].max()
    if grid.tiles > 1 and density < 0.7:
        assert len({int(m.sum()) for m in kept.flatten(0, 1)}) > 1  # density varies over heads


def test_equal_sums_are_kept_up_to_the_count():
    grid = TokenGrid(1, 20, 33)
    sums = {(0, block): torch.ones(3, grid.tiles, grid.tiles) for block in range(2)}
    for keep in (66, 100, 101, 500, 726):
        masks = select_tiles(sums, grid, keep / 726)
        assert sum(int(mask.sum()) for mask in masks.values()) == keep
    nothing = {key: torch.zeros_like(total) for key, total in sums.items()}
    assert sum(int(mask.sum()) for mask in select_tiles(nothing, grid, 100 / 726).values()) == 100


def test_a_density_that_cannot_be_is_refused():
    grid = TokenGrid(1, 20, 33, text=70)
    sums = random_sums(grid, [(0, 0)])
    with pytest.raises(DitQuantError, match="The smallest density here is") as caught:
        select_tiles(sums, grid, 0.1)
    smallest = float(str(caught.value).rstrip(".").split()[-1])
    assert select_tiles(sums, grid, smallest + 1e-4)[0, 0].float().mean() == pytest.approx(smallest, abs=1e-3)


@pytest.mark.parametrize("sample", [1.0, 0.5])
def test_a_structured_model_gets_its_orders_and_a_mask_that_loses_nothing(sample, tmp_path):
    records = structured()
    fit = fit_attention(records, GRID, step_bins(3), density=0.7, criterion=Criterion(sample=sample))
    assert torch.equal(fit.plan.orders.long(), ORDERS_WANTED)
    assert fit.plan.steps == (0, 1, 1) and fit.plan.bins == 2 and fit.plan.density == 0.7
    count = 2 * 2 * 3 * GRID.tiles**2
    kept = sum(fit.plan.mask(i, block).sum() for i in range(2) for block in range(2))
    assert int(kept) == round(0.7 * count) and float(fit.density.mean()) == pytest.approx(0.7, abs=1 / count)
    save_plan(fit.plan, tmp_path / "plan.safetensors")
    plan = load_plan(tmp_path / "plan.safetensors")
    for i, block, q, k in records:
        order, mask = plan.order(block), plan.mask(i, block)
        v = some_qkv(GRID, 3, 32, dtype=torch.float32)[2]
        dense = full_map(q.double(), k.double(), GRID, order) @ v.double()
        settings = {"grid": GRID, "mask": mask, "name": f"block {block}"}
        error = (attend(q, k, v, order=order, **settings) - dense).norm() / dense.norm()
        unordered = (attend(q, k, v, order=torch.zeros(3, dtype=torch.long), **settings) - dense).norm() / dense.norm()
        assert error < 0.05 < unordered


def test_the_mass_that_is_reported_is_that_of_the_map():
    fit = fit_attention(structured(), GRID, step_bins(3), density=0.7)
    for i, block, q, k in structured():
        order, mask = fit.plan.order(block), fit.plan.mask(i, block)
        p = full_map(q.double(), k.double(), GRID, order)
        sparse = full_map(q.double(), k.double(), GRID, order, mask)
        mass = (p * (sparse > 0)).sum((-1, -2))[0] / GRID.tokens
        assert torch.allclose(fit.mass[i, block], mass, atol=1e-5)
        assert torch.allclose(fit.density[i, block], mask.double().mean((-1, -2)))


def test_records_of_one_bin_and_block_are_averaged():
    records = structured(bins=1)
    more = [(i, block, q.flip(1), k.flip(1)) for i, block, q, k in records]
    batch = [(i, block, torch.cat([q, q.flip(1)]), torch.cat([k, k.flip(1)])) for i, block, q, k in records]
    one, two = (fit_attention(r, GRID, density=0.7) for r in (records + more, batch))
    assert torch.equal(one.plan.orders, two.plan.orders) and torch.equal(one.plan.masks, two.plan.masks)
    assert torch.allclose(one.scores.quant, two.scores.quant) and torch.allclose(one.mass, two.mass, atol=1e-6)
    assert not torch.allclose(one.mass, fit_attention(records, GRID, density=0.7).mass, atol=1e-3)


def test_the_same_records_give_the_same_plan():
    first, second = (fit_attention(structured(), GRID, step_bins(3), density=0.5).plan for _ in range(2))
    assert torch.equal(first.masks, second.masks) and torch.equal(first.orders, second.orders)


def test_without_a_density_there_are_only_orders():
    fit = fit_attention(structured(), GRID, step_bins(3), qk_bits=8, pv_bits=8)
    assert fit.plan.masks is None and fit.mass is None and fit.plan.steps == (0, 0, 0)
    assert torch.equal(fit.plan.orders.long(), ORDERS_WANTED) and fit.plan.qk_bits == fit.plan.pv_bits == 8


def test_refusals():
    records = structured()
    with pytest.raises(DitQuantError, match="only once"):
        fit_attention(iter(records), GRID)
    with pytest.raises(DitQuantError, match="give one"):
        fit_attention(records, GRID, criterion=Criterion("mass"))
    with pytest.raises(DitQuantError, match=r"block 0 in bin 0 has 504 tokens, .* has 505"):
        fit_attention(records, TokenGrid(5, 9, 11, text=10))
    with pytest.raises(DitQuantError, match=r"bin 2, block 0 were not recorded. Needed are 3 bins"):
        fit_attention(records, GRID, step_bins(5), density=0.7)
    with pytest.raises(DitQuantError, match=r"bin 1, block 0 were recorded. Needed are 1 bins"):
        fit_attention(records, GRID, density=0.7)
    with pytest.raises(DitQuantError, match=r"blocks \[1\]"):
        fit_attention(records[1:2], GRID)
    with pytest.raises(DitQuantError, match=r"blocks \[\]"):
        fit_attention([], GRID)
    i, block, q, k = records[1]
    with pytest.raises(DitQuantError, match=r"\[2, 3\] heads"):
        fit_attention([records[0], (i, block, q[:, :2], k[:, :2])], GRID)
    bad = k.clone()
    bad[0, 2, 5, 1] = float("nan")
    with pytest.raises(DitQuantError, match="k of head 2 of block 1 in bin 0 has NaN"):
        fit_attention([records[0], (i, block, q, bad)], GRID)
