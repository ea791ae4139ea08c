"""A small plan, and files that pretend to hold one."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ditquant.attention import AttentionPlan, TokenGrid, save_plan, step_bins
from ditquant.attention.bits import pack_mask
from ditquant.attention.plan_file import KEY, _checksum
from tests.attention.maps import some_mask

GRID = TokenGrid(2, 7, 11, text=5)


def some_plan(bins: int = 3, blocks: int = 2, heads: int = 3, grid: TokenGrid = GRID, **changes) -> AttentionPlan:
    masks = pack_mask(some_mask(grid, bins * blocks * heads, 0.4)).view(bins, blocks, heads, -1)
    orders = torch.randint(6, (blocks, heads), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return AttentionPlan(
        **{"grid": grid, "orders": orders, "masks": masks, "steps": step_bins(5), "qk_bits": 8, "pv_bits": 4}
        | {"density": 0.4}
        | changes
    )


def write_lie(path, header: dict | str, **tensors: torch.Tensor) -> None:
    """Write a file whose checksum is right, as someone who wants it to be read would."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={KEY: text, "crc32": _checksum(text, tensors)})


def honest_header(plan: AttentionPlan, tmp_path) -> dict:
    save_plan(plan, tmp_path / "honest.safetensors", overwrite=True)
    with safe_open(tmp_path / "honest.safetensors", "pt") as content:
        return json.loads(content.metadata()[KEY])
