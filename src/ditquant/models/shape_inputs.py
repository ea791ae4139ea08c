"""Arguments of a call of a transformer of diffusers, by the name of its class: random but for positions."""

from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ditquant.errors import DitQuantError

Grid = tuple[int, int, int]
Random = Callable[..., Tensor]  # random(*shape) has a batch axis in front, and the dtype and device of the call
STEP = 500


def grid_of(tokens: int, usual: Grid) -> Grid:
    """Return frames, rows and columns of so many tokens: as many frames as usual, if they divide, and nearly square."""
    if type(tokens) is not int or tokens < 1:
        raise DitQuantError(f"tokens {tokens!r} are not allowed. Choose a positive integer.")
    frames = usual[0] if tokens % usual[0] == 0 else 1
    place = tokens // frames
    rows = next(n for n in range(isqrt(place), 0, -1) if place % n == 0)
    return frames, rows, place // rows


def _steps(like: Tensor) -> Tensor:
    return torch.full((like.shape[0],), STEP, device=like.device)


def dit(config: Mapping[str, Any], grid: Grid, text: int, random: Random) -> dict[str, Any]:
    """Latents, step and class; this model takes squares only."""
    _, rows, columns = grid
    if rows != columns:
        near = isqrt(rows * columns)
        raise DitQuantError(
            f"DiT takes squares of tokens, not {rows}x{columns}. Choose {near**2} or {(near + 1) ** 2} tokens."
        )
    x = random(config["in_channels"], 2 * rows, 2 * columns)
    return {"hidden_states": x, "timestep": _steps(x), "class_labels": torch.zeros_like(_steps(x))}


def pixart(config: Mapping[str, Any], grid: Grid, text: int, random: Random) -> dict[str, Any]:
    """Latents, captions without padding, step."""
    x = random(config["in_channels"], 2 * grid[1], 2 * grid[2])
    captions = random(text, config["caption_channels"])
    return {
        "hidden_states": x,
        "encoder_hidden_states": captions,
        "encoder_attention_mask": torch.ones(captions.shape[:2], device=x.device),
        "timestep": _steps(x),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def sd3(config: Mapping[str, Any], grid: Grid, text: int, random: Random) -> dict[str, Any]:
    """Latents, text, pooled text, step."""
    x = random(16, 2 * grid[1], 2 * grid[2])
    captions = random(text, 4096)
    return {
        "hidden_states": x,
        "encoder_hidden_states": captions,
        "pooled_projections": random(2048),
        "timestep": _steps(x),
    }


def flux(config: Mapping[str, Any], grid: Grid, text: int, random: Random) -> dict[str, Any]:
    """Packed latents, text, pooled text, positions, step and guidance."""
    x = random(grid[1] * grid[2], 64)
    rows, columns = torch.meshgrid(torch.arange(grid[1]), torch.arange(grid[2]), indexing="ij")
    places = torch.stack((torch.zeros_like(rows), rows, columns), -1).flatten(0, 1)
    return {
        "hidden_states": x,
        "encoder_hidden_states": random(text, 4096),
        "pooled_projections": random(768),
        "timestep": _steps(x).to(x.dtype) / 1000,
        "img_ids": places.to(x.device, x.dtype),
        "txt_ids": torch.zeros(text, 3, device=x.device, dtype=x.dtype),
        "guidance": torch.full((x.shape[0],), 3.5, device=x.device),
    }


def cogvideox(config: Mapping[str, Any], grid: Grid, text: int, random: Random) -> dict[str, Any]:
    """Latents of all frames, text, step, rotary tables."""
    frames, rows, columns = grid
    x = random(frames, 16, 2 * rows, 2 * columns)
    angles = torch.rand(
        frames * rows * columns, config["attention_head_dim"], generator=torch.Generator().manual_seed(0)
    )
    return {
        "hidden_states": x,
        "encoder_hidden_states": random(text, 4096),
        "timestep": _steps(x),
        "image_rotary_emb": (angles.cos().to(x.device), angles.sin().to(x.device)),
    }


def wan(config: Mapping[str, Any], grid: Grid, text: int, random: Random) -> dict[str, Any]:
    """Latents of all frames, text, step."""
    frames, rows, columns = grid
    x = random(16, frames, 2 * rows, 2 * columns)
    return {"hidden_states": x, "encoder_hidden_states": random(text, 4096), "timestep": _steps(x)}


INPUTS: dict[str, Callable[[Mapping[str, Any], Grid, int, Random], dict[str, Any]]] = {
    "CogVideoXTransformer3DModel": cogvideox,
    "DiTTransformer2DModel": dit,
    "FluxTransformer2DModel": flux,
    "PixArtTransformer2DModel": pixart,
    "SD3Transformer2DModel": sd3,
    "WanTransformer3DModel": wan,
}
