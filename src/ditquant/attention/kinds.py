"""Classes of models that attend by a plan: their self-attention layers, what replaces their processors, their grids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ditquant.attention.grid import TokenGrid
from ditquant.attention.processors import (
    JointImageFirst,
    JointTextFirst,
    SelfAttention,
    TextThenVideo,
    VideoOnly,
    VideoThenText,
)
from ditquant.registry import unknown


@dataclass(frozen=True)
class Kind:
    """`layers` matches the names of self-attention over visual tokens; `grid(config, arguments)` is that of a call."""

    layers: str
    processor: type[SelfAttention]
    grid: Callable[[Any, Mapping[str, Any]], TokenGrid]


def kind_of(model: nn.Module) -> Kind:
    """Return what is known of a model's class.

    Raises:
        DitQuantError: nothing is; names the class.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in KINDS:
            return KINDS[cls.__name__]
    raise unknown("class of model for an attention plan", type(model).__name__, KINDS)


def _text(arguments: Mapping[str, Any]) -> int:
    return arguments["encoder_hidden_states"].shape[1]


def _image(config: Any, arguments: Mapping[str, Any]) -> TokenGrid:
    height, width = arguments["hidden_states"].shape[-2:]
    return TokenGrid(1, height // config.patch_size, width // config.patch_size)


def _image_then_text(config: Any, arguments: Mapping[str, Any]) -> TokenGrid:
    image = _image(config, arguments)
    return TokenGrid(1, image.height, image.width, _text(arguments), text_first=False)


def _packed_image(config: Any, arguments: Mapping[str, Any]) -> TokenGrid:
    height, width = (int(n) + 1 for n in arguments["img_ids"][..., 1:].reshape(-1, 2).amax(0))
    return TokenGrid(1, height, width, _text(arguments))


def _text_then_video(config: Any, arguments: Mapping[str, Any]) -> TokenGrid:
    _, frames, _, height, width = arguments["hidden_states"].shape
    patch, patch_t = config.patch_size, config.patch_size_t or 1
    return TokenGrid(frames // patch_t, height // patch, width // patch, _text(arguments))


def _video(config: Any, arguments: Mapping[str, Any]) -> TokenGrid:
    sizes = arguments["hidden_states"].shape[2:]
    return TokenGrid(*(size // patch for size, patch in zip(sizes, config.patch_size, strict=True)))


def _video_then_text(config: Any, arguments: Mapping[str, Any]) -> TokenGrid:
    frames, height, width = arguments["hidden_states"].shape[2:]
    patch = config.patch_size
    visual = (frames // config.patch_size_t, height // patch, width // patch)
    return TokenGrid(*visual, _text(arguments), text_first=False)


KINDS: dict[str, Kind] = {
    "CogVideoXTransformer3DModel": Kind(r"transformer_blocks\.\d+\.attn1", TextThenVideo, _text_then_video),
    "FluxTransformer2DModel": Kind(r"(single_)?transformer_blocks\.\d+\.attn", JointTextFirst, _packed_image),
    "HunyuanVideoTransformer3DModel": Kind(r"(single_)?transformer_blocks\.\d+\.attn", VideoThenText, _video_then_text),
    "PixArtTransformer2DModel": Kind(r"transformer_blocks\.\d+\.attn1", SelfAttention, _image),
    "SD3Transformer2DModel": Kind(r"transformer_blocks\.\d+\.attn", JointImageFirst, _image_then_text),
    "WanTransformer3DModel": Kind(r"blocks\.\d+\.attn1", VideoOnly, _video),
}
