"""PixArt-alpha and -Sigma: self-attention, cross-attention and feed-forward, modulated from outside the blocks."""

from ditquant.models.base import BlockList, ModelFamily, attention, feed_forward, register

PIXART = register(
    ModelFamily(
        name="pixart",
        transformers=("PixArtTransformer2DModel",),
        blocks=(BlockList("transformer_blocks", ("hidden_states",)),),
        roles={**attention("attn1"), **attention("attn2", "cross"), **feed_forward("ff")},
    )
)
