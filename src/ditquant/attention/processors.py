"""diffusers' self-attention with the attention itself left to a function: one processor for each kind of block.

Projections, norms, positions and output are those of diffusers' own processors. A mask of padding is taken where the
text stands last (HunyuanVideo), and refused elsewhere.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
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


class VideoThenText(SelfAttention):
    """Video and text, video first, positions on the video alone, in blocks of two streams and of one: HunyuanVideo."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "B V C"],
        encoder_hidden_states: Float[Tensor, "B E C"],
        attention_mask: Bool[Tensor, "B 1 1 S"] | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B V C"], Float[Tensor, "B E C"]]:
        """Take the place of HunyuanVideoAttnProcessor2_0."""
        video, two = hidden_states.shape[1], attn.add_q_proj is not None
        joined = hidden_states if two else torch.cat([hidden_states, encoder_hidden_states], 1)
        q, k, v = _project(attn, joined)
        if image_rotary_emb is not None:
            q, k = (torch.cat([_rotate(x[:, :, :video], *image_rotary_emb), x[:, :, video:]], 2) for x in (q, k))
        if two:
            text = _project(attn, encoder_hidden_states, added=True)
            q, k, v = (torch.cat(pair, 2) for pair in zip((q, k, v), text, strict=True))
        merged = _merge(_over_prefix(self.core, q, k, v, attention_mask))
        video_out, text_out = merged.split([video, encoder_hidden_states.shape[1]], 1)
        if getattr(attn, "to_out", None) is not None:
            video_out = attn.to_out[1](attn.to_out[0](video_out))
        return video_out, text_out if getattr(attn, "to_add_out", None) is None else attn.to_add_out(text_out)


def _over_prefix(core: Core, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Float[Tensor, "B H S D"]:
    """Attend without the padding at the end of each sample; what stands there comes out as zero.

    Nothing attends to padding, so that nothing else changes.
    """
    if mask is None or bool(mask.all()):
        return core(q, k, v)
    there = mask.expand(len(q), 1, 1, q.shape[2])[:, 0, 0].bool()
    if bool((there[:, 1:] > there[:, :-1]).any()) or not bool(there[:, 0].all()):
        raise DitQuantError("an attention plan takes masks of padding at the end only. Pad the text on its right.")
    out = torch.zeros_like(q)
    for i, count in enumerate(there.sum(1).tolist()):
        out[i : i + 1, :, :count] = core(*(x[i : i + 1, :, :count] for x in (q, k, v)))
    return out


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
