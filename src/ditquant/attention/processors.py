"""diffusers' self-attention with the attention itself left to a function: one processor for each kind of block.

Projections, norms, positions and output are those of diffusers' own processors; masks of padding are refused.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditquant.errors import DitQuantError

Core = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, H, S, D] with positions -> [B, H, S, D]


class SelfAttention:
    """One stream without positions: PixArt."""

    def __init__(self, core: Core):
        self.core = core

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "B S C"],
        encoder_hidden_states: None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "B S C"]:
        """Take the place of AttnProcessor2_0."""
        _refuse_mask(attention_mask)
        return _out(attn, self.core(*_project(attn, hidden_states)))


class JointImageFirst(SelfAttention):
    """Image and text, each with projections of its own, image first: SD3."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "B V C"],
        encoder_hidden_states: Float[Tensor, "B E C"],
        attention_mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B V C"], Float[Tensor, "B E C"]]:
        """Take the place of JointAttnProcessor2_0."""
        _refuse_mask(attention_mask)
        image, text = _project(attn, hidden_states), _project(attn, encoder_hidden_states, added=True)
        joined = _merge(self.core(*(torch.cat(pair, 2) for pair in zip(image, text, strict=True))))
        image, text = joined.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](image)), text if attn.context_pre_only else attn.to_add_out(text)


class JointTextFirst(SelfAttention):
    """Text and image, text first, in blocks with two streams and with one: FLUX."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "B V C"],
        encoder_hidden_states: Float[Tensor, "B E C"] | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Take the place of FluxAttnProcessor."""
        _refuse_mask(attention_mask)
        q, k, v = _project(attn, hidden_states)
        if encoder_hidden_states is not None:
            text = _project(attn, encoder_hidden_states, added=True)
            q, k, v = (torch.cat(pair, 2) for pair in zip(text, (q, k, v), strict=True))
        if image_rotary_emb is not None:
            q, k = (_rotate(x, *image_rotary_emb) for x in (q, k))
        joined = _merge(self.core(q, k, v))
        if encoder_hidden_states is None:
            return joined
        text, image = joined.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)


class TextThenVideo(SelfAttention):
    """Text before video through the same projections, positions on the video alone: CogVideoX."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "B V C"],
        encoder_hidden_states: Float[Tensor, "B E C"],
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B V C"], Float[Tensor, "B E C"]]:
        """Take the place of CogVideoXAttnProcessor2_0."""
        _refuse_mask(attention_mask)
        text = encoder_hidden_states.shape[1]
        q, k, v = _project(attn, torch.cat([encoder_hidden_states, hidden_states], 1))
        if image_rotary_emb is not None:
            q, k = (torch.cat([x[:, :, :text], _rotate(x[:, :, text:], *image_rotary_emb)], 2) for x in (q, k))
        out = _out(attn, self.core(q, k, v))
        return out[:, text:], out[:, :text]


class VideoOnly(SelfAttention):
    """Video alone, norms over all heads at once: Wan."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "B S C"],
        encoder_hidden_states: None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B S C"]:
        """Take the place of WanAttnProcessor."""
        _refuse_mask(attention_mask)
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k, v = (_heads(x, attn.heads) for x in (q, k, attn.to_v(hidden_states)))
        if rotary_emb is not None:
            cos, sin = (x.transpose(1, 2) for x in rotary_emb)  # [1, 1, S, D]
            q, k = (_rotate(x, cos, sin, wide=False) for x in (q, k))
        return _out(attn, self.core(q, k, v))


def _heads(x: Float[Tensor, "B S C"], heads: int) -> Float[Tensor, "B H S D"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Float[Tensor, "B H S D"]) -> Float[Tensor, "B S C"]:
    return x.transpose(1, 2).flatten(2)


def _out(attn: nn.Module, x: Float[Tensor, "B H S D"]) -> Float[Tensor, "B S C"]:
    return attn.to_out[1](attn.to_out[0](_merge(x)))


def _project(attn: nn.Module, x: Float[Tensor, "B S C"], added: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    names = ("add_q_proj", "add_k_proj", "add_v_proj") if added else ("to_q", "to_k", "to_v")
    q, k, v = (_heads(getattr(attn, name)(x), attn.heads) for name in names)
    norm_q, norm_k = (getattr(attn, f"norm_{'added_' if added else ''}{which}") for which in "qk")
    return q if norm_q is None else norm_q(q), k if norm_k is None else norm_k(k), v


def _rotate(x: Float[Tensor, "B H S D"], cos: Tensor, sin: Tensor, wide: bool = True) -> Float[Tensor, "B H S D"]:
    """Turn neighbouring channels; `wide` in float32, as diffusers does everywhere but in Wan."""
    cos, sin = cos.to(x.device), sin.to(x.device)
    y = x.float() if wide else x
    real, imaginary = y.unflatten(-1, (-1, 2)).unbind(-1)
    return (y * cos + torch.stack([-imaginary, real], -1).flatten(-2) * sin).to(x.dtype)


def _refuse_mask(attention_mask: Tensor | None) -> None:
    if attention_mask is not None:
        raise DitQuantError("an attention plan takes no attention mask: run prompts without padding masks.")
