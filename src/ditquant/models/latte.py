"""Latte: blocks over space and blocks over time take turns, so that neither list can be run on its own."""

from ditquant.models.base import BlockList, ModelFamily, attention, feed_forward, register

LATTE = register(
    ModelFamily(
        name="latte",
        transformers=("LatteTransformer3DModel",),
        blocks=(BlockList("transformer_blocks"), BlockList("temporal_transformer_blocks")),
        roles={**attention("attn1"), **attention("attn2", "cross"), **feed_forward("ff")},
    )
)
