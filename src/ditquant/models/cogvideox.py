"""CogVideoX: one attention and one feed-forward over text and video together."""

from ditquant.models.base import BlockList, ModelFamily, attention, feed_forward, register

COGVIDEOX = register(
    ModelFamily(
        name="cogvideox",
        transformers=("CogVideoXTransformer3DModel",),
        blocks=(BlockList("transformer_blocks", ("hidden_states", "encoder_hidden_states")),),
        roles={**attention("attn1"), **feed_forward("ff"), "modulation": r"norm[12]\.linear"},
    )
)
