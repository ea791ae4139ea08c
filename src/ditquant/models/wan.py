"""Wan and the models on its blocks: self-attention, cross-attention to text (and image) and feed-forward."""

from ditquant.models.base import BlockList, ModelFamily, added, attention, feed_forward, register

WAN = register(
    ModelFamily(
        name="wan",
        transformers=("WanTransformer3DModel", "SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel"),
        blocks=(BlockList("blocks", ("hidden_states",)),),
        roles={**attention("attn1"), **attention("attn2", "cross"), **added("attn2"), **feed_forward("ffn")},
    )
)
