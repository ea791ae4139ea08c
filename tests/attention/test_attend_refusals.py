"""What attention refuses, and that it says where."""

import pytest
import torch

from ditquant.attention import TokenGrid, attend
from ditquant.errors import DitQuantError
from tests.attention.maps import some_qkv


def test_refusals():
    grid, order = TokenGrid(2, 7, 9), torch.tensor([0, 5, 2])
    q, k, v = some_qkv(grid, 3, 8)
    good = {"grid": grid, "order": order, "name": "blocks.7.attn1"}
    with pytest.raises(DitQuantError, match=r"blocks.7.attn1 has 125 tokens, the grid of 2x7x9 .* has 126"):
        attend(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], **good)
    with pytest.raises(DitQuantError, match="shapes"):
        attend(q, k[:, :, 1:], v, **good)
    for bad in (order[:2], order.float()):
        with pytest.raises(DitQuantError, match="3 heads"):
            attend(q, k, v, **good | {"order": bad})
    with pytest.raises(DitQuantError, match="order 6"):
        attend(q, k, v, **good | {"order": order + 1})
    for bad in (torch.ones(3, 3, 3).bool(), torch.ones(3, 2, 2), torch.ones(2, 2).bool()):
        with pytest.raises(DitQuantError, match=r"needed is torch.bool \(3, 2, 2\)"):
            attend(q, k, v, **good, mask=bad)
    hole = torch.ones(3, 2, 2, dtype=torch.bool)
    hole[2, 1] = False
    with pytest.raises(DitQuantError, match=r"head 2 of blocks.7.attn1 keeps no tile in row 1"):
        attend(q, k, v, **good, mask=hole)
    for bits in (2, 16, 8.0, True):
        with pytest.raises(DitQuantError, match="4, 8 or none"):
            attend(q, k, v, **good, qk_bits=bits)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_head_that_is_not_finite_is_named(which, value):
    grid = TokenGrid(2, 7, 9)
    tensors = some_qkv(grid, 3, 8, batch=2)
    tensors[which][1, 2, 77, 3] = value
    with pytest.raises(DitQuantError, match=f"{'qkv'[which]} of head 2 of blocks.7 has NaN"):
        attend(*tensors, grid=grid, order=torch.zeros(3, dtype=torch.long), name="blocks.7")
