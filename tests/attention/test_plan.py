"""A plan comes back from its file, its masks are bits, and a file that cannot be a plan is refused."""

from dataclasses import replace

import pytest
import torch

from ditquant.attention import TokenGrid, load_plan, save_plan, step_bins
from ditquant.attention.bits import mask_bytes, pack_mask, unpack_mask
from ditquant.errors import DitQuantError
from tests.attention.lies import GRID, honest_header, some_plan, write_lie


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_saved_is_loaded(tmp_path, masks):
    plan = some_plan() if masks else some_plan(masks=None, steps=(0, 0), qk_bits=None, density=1.0)
    save_plan(plan, tmp_path / "plan.safetensors")
    again = load_plan(tmp_path / "plan.safetensors")
    assert torch.equal(again.orders, plan.orders)
    assert torch.equal(again.masks, plan.masks) if masks else again.masks is None
    for name in ("grid", "steps", "qk_bits", "pv_bits", "density", "version", "bins"):
        assert getattr(again, name) == getattr(plan, name)
    with pytest.raises(DitQuantError, match="exists"):
        save_plan(plan, tmp_path / "plan.safetensors")


@pytest.mark.parametrize("tiles", [1, 2, 3, 8, 13])
def test_masks_are_bits(tiles):
    mask = torch.rand(4, tiles, tiles, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = pack_mask(mask)
    assert bits.shape == (4, mask_bytes(tiles)) == (4, -(-tiles * tiles // 8))
    assert torch.equal(unpack_mask(bits, tiles), mask)
    stream = [int(bits[0, i // 8]) >> (i % 8) & 1 for i in range(tiles * tiles)]
    assert stream == mask[0].flatten().int().tolist()


def test_the_file_has_the_size_of_its_bits(tmp_path):
    grid = TokenGrid(5, 16, 16, text=226)
    plan = some_plan(bins=3, blocks=2, heads=6, grid=grid)
    save_plan(plan, tmp_path / "plan.safetensors")
    size = (tmp_path / "plan.safetensors").stat().st_size
    assert 0 < size - 3 * 2 * 6 * mask_bytes(grid.tiles) < 1000


def test_cogvideox_takes_19_5_mb_a_bin():
    tiles = TokenGrid(13, 30, 45, text=226).tiles
    assert mask_bytes(tiles) == 9_661
    assert round(2016 * mask_bytes(tiles) / 1e6, 1) == 19.5


def test_bins_of_steps():
    assert step_bins(6) == (0, 1, 2, 3, 3, 3) and step_bins(5) == (0, 1, 2, 2, 2)
    assert step_bins(4, own=0) == (0, 0, 0, 0) and step_bins(3, own=3) == (0, 1, 2) and step_bins(1) == (0,)
    plan = some_plan()
    assert [plan.bin_of(step) for step in range(5)] == [0, 1, 2, 2, 2]
    assert [plan.bin_of(step, 10) for step in range(10)] == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [plan.bin_of(step, 2) for step in range(2)] == [0, 2]
    for step, steps in ((5, None), (-1, None), (10, 10)):
        with pytest.raises(DitQuantError, match="fitted on 5"):
            plan.bin_of(step, steps)
    for bad in ((0, None), (3, 4), (3, -1), (2.0, None)):
        with pytest.raises(DitQuantError, match="not allowed"):
            step_bins(*bad)


def test_masks_and_orders_of_a_block():
    plan = some_plan()
    mask = unpack_mask(plan.masks[2, 1], GRID.tiles)
    assert torch.equal(plan.mask(2, 1), mask) and plan.kept(2, 1) == float(mask.double().mean())
    assert torch.equal(plan.order(1), plan.orders[1].long())
    dense = some_plan(masks=None, steps=(0,))
    assert dense.mask(0, 1) is None and dense.kept(0, 1) == 1


def test_another_model_or_size_is_refused_with_both_shapes():
    plan = some_plan()
    plan.check_fits(GRID, 2, 3)
    with pytest.raises(DitQuantError, match=r"2 blocks of 3 heads on 2x7x11 .* has 2 blocks of 4 heads on 2x7x11"):
        plan.check_fits(GRID, 2, 4)
    with pytest.raises(DitQuantError, match=r"2x7x11 visual .* 2x7x12 visual"):
        plan.check_fits(replace(GRID, width=12), 2, 3)
    with pytest.raises(DitQuantError, match="5 of text before"):
        plan.check_fits(replace(GRID, text_first=False), 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": torch.full((2, 3), 6, dtype=torch.uint8)}, "order 6"),
        ({"orders": torch.zeros(2, 3, dtype=torch.int64)}, "uint8"),
        ({"orders": torch.zeros(0, 3, dtype=torch.uint8)}, "axes"),
        ({"masks": torch.full((3, 2, 3, 1), 255, dtype=torch.uint8)}, "end with"),
        ({"masks": torch.full((3, 2, 4, 2), 255, dtype=torch.uint8)}, "end with"),
        ({"masks": torch.full((3, 2, 3, 2), 255, dtype=torch.uint8)}, "beyond its 3x3"),
        ({"masks": torch.zeros(3, 2, 3, 2, dtype=torch.uint8)}, "bin 0, block 0, head 0 keeps no tile in row 0"),
        ({"steps": (0, 1)}, "each of its 3 bins"),
        ({"steps": (0, 1, 3)}, "each of its 3 bins"),
        ({"steps": ()}, "each of its 3 bins"),
        ({"density": 0}, "density"),
        ({"density": float("nan")}, "density"),
        ({"qk_bits": 5}, "qk_bits 5"),
        ({"pv_bits": "8"}, "pv_bits"),
        ({"version": 0}, "version"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_no_plan_can_be_is_refused_made_and_loaded(tmp_path, changes, message):
    with pytest.raises(DitQuantError, match=message):
        some_plan(**changes)
    plan, path = some_plan(), tmp_path / "lie.safetensors"
    tensors = {name: changes.get(name, getattr(plan, name)) for name in ("orders", "masks")}
    header = honest_header(plan, tmp_path) | {k: v for k, v in changes.items() if k not in tensors}
    write_lie(path, header, **tensors)
    with pytest.raises(DitQuantError, match=f"damaged: .*{message}"):
        load_plan(path)


def test_an_image_has_no_order_of_frames():
    with pytest.raises(DitQuantError, match="order 2 is none"):
        some_plan(grid=TokenGrid(1, 7, 11), orders=torch.full((2, 3), 2, dtype=torch.uint8))
