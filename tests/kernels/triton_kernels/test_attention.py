"""Attention over kept tiles is the softmax over them; in integers its error is within that of the reference."""

import pytest
import torch

from ditquant.attention import TokenGrid, attend
from ditquant.attention.stripes import attend_reference
from ditquant.kernels import report, triton
from ditquant.kernels.triton.tile_lists import tile_lists

GRID = TokenGrid(3, 5, 9, text=5)  # 140 tokens: a ragged third tile
CASES = [(64, bits) for bits in ((None, None), (8, 8), (8, None), (None, 8), (4, 4))]
CASES += [(width, bits) for width in (72, 96, 128) for bits in ((None, None), (8, 8))]


def some_qkv(width: int, device: str, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(1, 2, GRID.tokens, width, generator=generator) for _ in range(3))
    return [x.to(device, dtype) for x in (q, k + 3 * torch.randn(1, 2, 1, width, generator=generator), v)]


def some_mask(device: str, density: float) -> torch.Tensor:
    keep = torch.rand(2, GRID.tiles, GRID.tiles, generator=torch.Generator().manual_seed(3)) < density
    keep[..., 0] |= ~keep.any(-1)
    return keep.to(device)


def reference(q, k, v, order, keep, qk_bits=None, pv_bits=None) -> torch.Tensor:
    index, heads = GRID.indices(order).to(q.device), torch.arange(2, device=q.device)[:, None]
    reordered = attend_reference(*(x[:, heads, index].double() for x in (q, k, v)), keep, qk_bits, pv_bits)
    out = torch.empty_like(reordered)
    out[:, heads, index] = reordered
    return out


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("width", "bits"), CASES)
def test_head_sizes_and_bits(width, bits, device):
    q, k, v = some_qkv(width, device)
    order = torch.tensor([1, 4])
    index = GRID.indices(order).to(device)
    keep = some_mask(device, 0.5) if width != 96 else None
    exact = reference(q, k, v, order, keep)
    found = triton.attend_triton(q, k, v, index, keep, *bits)
    naive = relative(reference(q, k, v, order, keep, *bits), exact)
    assert relative(found, exact) <= 1.1 * naive + 2e-6


def test_rows_with_a_single_tile(device):
    q, k, v = some_qkv(64, device)
    order = torch.tensor([0, 5])
    keep = torch.eye(GRID.tiles, dtype=torch.bool, device=device).expand(2, -1, -1).clone()
    keep[1] = keep[1].flip(0)  # the ragged tile for the first row
    index = GRID.indices(order).to(device)
    for bits in ((None, None), (8, 8)):
        exact = reference(q, k, v, order, keep)
        allowed = 1.1 * relative(reference(q, k, v, order, keep, *bits), exact) + 2e-6
        assert relative(triton.attend_triton(q, k, v, index, keep, *bits), exact) <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_through_attend(dtype, device, caplog, monkeypatch):
    monkeypatch.setattr(report, "_reported", set())
    q, k, v = some_qkv(64, device, dtype)
    order, mask = torch.tensor([2, 3]), some_mask(device, 0.3)
    with caplog.at_level("INFO", logger="ditquant.kernels"):
        found = attend(q, k, v, grid=GRID, order=order, mask=mask, qk_bits=8, pv_bits=8)
    assert [r.getMessage() for r in caplog.records] == ["attention over tiles by the Triton kernels"]
    keep = mask | GRID.text_tiles().to(device)
    exact = reference(q, k, v, order, keep)
    assert found.dtype == dtype and relative(found, exact) < 1.1 * relative(
        reference(q, k, v, order, keep, 8, 8).to(dtype), exact
    )


def test_lists_hold_the_kept_tiles_in_order(device):
    keep = some_mask(device, 0.4)
    columns, counts = tile_lists(keep)
    for head in range(2):
        for row in range(GRID.tiles):
            kept = keep[head, row].nonzero().flatten().tolist()
            assert columns[head, row, : counts[head, row]].tolist() == kept


def test_what_is_not_taken(device):
    q = torch.zeros(1, 2, 8, 160, device=device)
    assert "at most 128 channels" in triton.why_not_attend(q)
    assert "do not take torch.float64" in triton.why_not_attend(q[..., :64].double())
