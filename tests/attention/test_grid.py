"""Orders are permutations that leave the text alone, and undo each other."""

import pytest
import torch

from ditquant.attention import ORDERS, TokenGrid
from ditquant.errors import DitQuantError
from tests.attention.maps import GRIDS, positions


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("order", range(6))
def test_an_order_puts_every_token_where_its_coordinates_say(grid, order):
    forward, back = grid.permutation(order), grid.inverse(order)
    assert torch.equal(back, positions(grid, order))
    assert torch.equal(forward[back], torch.arange(grid.tokens)) and torch.equal(back[forward], forward[back])
    text = torch.arange(grid.text) + (0 if grid.text_first else grid.visual)
    assert torch.equal(forward[text], text)


def test_the_first_order_changes_nothing_and_the_six_differ():
    grid = TokenGrid(2, 3, 5, text=4)
    assert torch.equal(grid.permutation(0), torch.arange(grid.tokens))
    assert len({tuple(grid.permutation(i).tolist()) for i in range(6)}) == 6
    assert grid.candidates() == tuple(range(6))


def test_an_image_has_two_orders():
    assert [ORDERS[i] for i in TokenGrid(1, 8, 9).candidates()] == ["FHW", "FWH"]
    assert TokenGrid(1, 1, 9).candidates() == (0,)
    for grid in GRIDS:
        distinct = {tuple(grid.permutation(i).tolist()) for i in grid.candidates()}
        assert len(distinct) == len(grid.candidates())
        assert distinct == {tuple(grid.permutation(i).tolist()) for i in range(6)}


def test_every_head_gets_its_own():
    grid = TokenGrid(2, 3, 5)
    found = grid.indices(torch.tensor([5, 0, 5]))
    assert torch.equal(found, torch.stack([grid.permutation(5), grid.permutation(0), grid.permutation(5)]))


def test_cogvideox_at_480x720():
    grid = TokenGrid(13, 30, 45, text=226)
    assert (grid.visual, grid.tokens, grid.tiles) == (17_550, 17_776, 278)
    assert int(grid.text_tiles()[:, -1].sum()) == 4  # 226 tokens reach into the fourth row of tiles
    assert int(grid.text_tiles().sum()) == 2 * 4 * 278 - 16
    assert TokenGrid(21, 45, 80).tokens == 75_600


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_text_tiles_are_those_with_a_token_of_text(grid):
    first = 0 if grid.text_first else grid.visual
    has = torch.zeros(grid.tiles, dtype=torch.bool)
    has[[token // 64 for token in range(first, first + grid.text)]] = True
    assert torch.equal(grid.text_tiles(), has[:, None] | has)


def test_refusals():
    with pytest.raises(DitQuantError, match=r"has 18000 tokens, the grid of 13x30x45 .*226 of text.* has 17776"):
        TokenGrid(13, 30, 45, text=226).check(18000)
    for bad in ({"frames": 0}, {"height": 2.0}, {"width": True}, {"text": -1}, {"text_first": 1}):
        with pytest.raises(DitQuantError, match=next(iter(bad))):
            TokenGrid(**({"frames": 1, "height": 2, "width": 3} | bad))
    for order in (-1, 6):
        with pytest.raises(DitQuantError, match="FHW"):
            TokenGrid(1, 2, 3).permutation(order)
