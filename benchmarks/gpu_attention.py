"""Attention of CogVideoX at full size on a card: torch's against the Triton kernel over kept tiles."""

import torch
from gpu_clock import Calls, relative, rounds_of, table
from torch import Tensor
from torch.nn import functional as F

from ditquant.attention import TokenGrid
from ditquant.kernels.triton import attend_triton

GRID = TokenGrid(13, 30, 45, text=226)  # CogVideoX at 480x720: 17,776 tokens
HEADS, WIDTH, DENSITY = 48, 64, 0.3
BITS = {"INT8": (8, 8), "INT8, PV in bfloat16": (8, None), "bfloat16": (None, None)}


def some_mask(grid: TokenGrid, heads: int, device: str) -> Tensor:
    """Keep random tiles at the density, those with text, and one in every row."""
    tiles = grid.tiles
    keep = torch.rand(heads, tiles, tiles, device=device) < DENSITY
    return keep | grid.text_tiles().to(device) | torch.eye(tiles, dtype=torch.bool, device=device)


def attention(rounds: int, device: str, peak: dict[str, float]) -> dict[str, object]:
    """Time with all that belongs to it: reordering, quantization, lists of tiles; dense and at a density of 0.3."""
    grid, heads = (GRID, HEADS) if device != "cpu" else (TokenGrid(2, 5, 9, text=5), 2)
    tokens = grid.tokens
    q, k, v = (torch.randn(1, heads, tokens, WIDTH, device=device).bfloat16() for _ in range(3))
    index = grid.indices(torch.arange(heads) % 6).to(device)
    keep = some_mask(grid, heads, device)
    masks = {"dense": None, f"density {DENSITY}": keep}
    errors = {}
    for where, mask in masks.items():
        exact = _exact(q, k, v, index, mask)
        for name, bits in BITS.items():
            found = attend_triton(q, k, v, index, mask, *bits)
            errors[f"{name}, {where}"] = relative(found[:, :1, : len(exact)], exact[None, None])
    if wrong := {key: error for key, error in errors.items() if not error < (0.04 if "INT8" in key else 0.01)}:
        raise SystemExit(f"no speed is reported of attention with the relative errors {wrong}")
    calls: Calls = {"torch": lambda: F.scaled_dot_product_attention(q, k, v)}
    for where, mask in masks.items():
        for name, bits in BITS.items():
            calls[f"{name}, {where}"] = lambda bits=bits, mask=mask: attend_triton(q, k, v, index, mask, *bits)
    found = table(rounds_of(calls, rounds, device), "torch")
    operations = 4 * tokens * tokens * WIDTH * heads / 1e12
    kept = float(keep.float().mean())
    for name, call in found.items():
        share = kept if "density" in name else 1.0
        kind = "int8" if name.startswith("INT8,") and "PV" not in name else "bfloat16"
        call[f"share of the {kind} peak"] = round(share * operations / (call["ms"] / 1000) / peak[kind], 3)
    shape = {"tokens": tokens, "heads": heads, "width": WIDTH, "density": round(kept, 4)}
    return shape | {"errors": errors, "calls": found}


def _exact(q: Tensor, k: Tensor, v: Tensor, index: Tensor, mask: Tensor | None, rows: int = 256) -> Tensor:
    """The first rows of the first head, in float64."""
    scores = q[0, 0, :rows].double() @ k[0, 0].double().T * WIDTH**-0.5
    if mask is not None:
        place = torch.empty_like(index[0])
        place[index[0]] = torch.arange(len(place), device=place.device)
        scores = scores.masked_fill(~mask[0][place[:rows] // 64][:, place // 64], float("-inf"))
    return scores.softmax(-1) @ v[0, 0].double()
