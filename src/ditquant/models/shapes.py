"""Real transformers by name, to be built with random weights: what benchmarks measure and kernels are tuned for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ditquant.errors import DitQuantError
from ditquant.models.coverage import find_linears
from ditquant.models.shape_inputs import INPUTS, Grid, grid_of
from ditquant.registry import Registry


@dataclass(frozen=True)
class Product:
    """One linear layer as a matrix product: y [tokens, out_features] from in_features."""

    name: str
    tokens: int
    in_features: int
    out_features: int


@dataclass(frozen=True)
class ModelShape:
    """A transformer of diffusers at full size; `blocks` are the arguments that count its blocks.

    `grid` holds frames, rows and columns of tokens at the usual resolution, `text` is the number of text tokens.
    """

    name: str
    transformer: str
    config: Mapping[str, Any]
    blocks: Mapping[str, int]
    grid: Grid
    text: int = 0

    def build(
        self, blocks: int | None = None, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", seed: int = 0
    ) -> nn.Module:
        """Make the model with random weights, ready to be called.

        `blocks` is the number of blocks of the first kind; others are cut in proportion, so that the mix stays.
        """
        import diffusers

        made, before = getattr(diffusers, self.transformer), torch.get_default_dtype()
        devices = [torch.device(device)] if device.startswith("cuda") else []
        with torch.random.fork_rng([d.index or 0 for d in devices]), torch.device(device):
            torch.manual_seed(seed)
            torch.set_default_dtype(dtype)
            try:
                model = made(**self.config, **self.cut(blocks))
            finally:
                torch.set_default_dtype(before)
        return model.eval().requires_grad_(False)

    def cut(self, blocks: int | None) -> dict[str, int]:
        """Return the arguments for fewer blocks."""
        first = next(iter(self.blocks.values()))
        if blocks is None:
            return dict(self.blocks)
        if type(blocks) is not int or not 1 <= blocks <= first:
            raise DitQuantError(
                f"blocks {blocks!r} are not allowed for {self.name}. Choose an integer from 1 to {first}."
            )
        return {key: max(1, round(blocks * count / first)) for key, count in self.blocks.items()}

    def arguments(
        self,
        tokens: int | None = None,
        batch: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        device: str = "cpu",
        seed: int = 1,
    ) -> dict[str, Any]:
        """Make the arguments of one call, random but for positions; `tokens` counts those of image or video only."""
        grid = self.grid if tokens is None else grid_of(tokens, self.grid)
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(batch, *shape, generator=generator).to(device, dtype)

        return INPUTS[self.transformer](self.config, grid, self.text, random)

    def products(self, tokens: int | None = None, batch: int = 1) -> list[Product]:
        """Return the linear layers of the first block of every kind, with the tokens that each one sees in a call."""
        model = self.build(2, device="meta")  # the last block of some models lacks layers
        found: dict[str, Product] = {}
        for layer in find_linears(model).layers:
            if layer.name.split(".")[1] == "0":
                model.get_submodule(layer.name).register_forward_hook(_note(layer.name, found))
        with torch.no_grad():
            model(**_to_meta(self.arguments(tokens, batch)))
        return list(found.values())


def _note(name: str, found: dict[str, Product]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, y: torch.Tensor) -> None:
        x = args[0]
        found[name] = Product(name, x.numel() // x.shape[-1], x.shape[-1], y.shape[-1])

    return hook


def _to_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {key: _to_meta(v) for key, v in value.items()}
    return tuple(_to_meta(v) for v in value) if isinstance(value, tuple) else value


SHAPES: Registry[ModelShape] = Registry("model shape")

_HEADS_72 = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8}
_COGVIDEOX = {"num_attention_heads": 48, "attention_head_dim": 64, "use_rotary_positional_embeddings": True}
_SD3 = {"num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
_PIXART = {"caption_channels": 4096, "use_additional_conditions": False, "sample_size": 64}

for shape in (
    ModelShape("dit-xl", "DiTTransformer2DModel", {**_HEADS_72}, {"num_layers": 28}, (1, 16, 16)),
    ModelShape("pixart-xl", "PixArtTransformer2DModel", {**_HEADS_72, **_PIXART}, {"num_layers": 28}, (1, 32, 32), 120),
    ModelShape("sd3-medium", "SD3Transformer2DModel", _SD3, {"num_layers": 24}, (1, 64, 64), 333),
    ModelShape(
        "flux-dev",
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        {"num_layers": 19, "num_single_layers": 38},
        (1, 64, 64),
        512,
    ),
    ModelShape("cogvideox-5b", "CogVideoXTransformer3DModel", _COGVIDEOX, {"num_layers": 42}, (13, 30, 45), 226),
    ModelShape("wan-14b", "WanTransformer3DModel", {}, {"num_layers": 40}, (21, 30, 52), 512),
):
    SHAPES[shape.name] = shape
