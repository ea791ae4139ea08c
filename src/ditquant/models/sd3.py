"""Stable Diffusion 3 and 3.5: joint attention of image and text; some blocks have a second self-attention `attn2`."""

from ditquant.models.base import BlockList, ModelFamily, added, attention, feed_forward, register

SD3 = register(
    ModelFamily(
        name="sd3",
        transformers=("SD3Transformer2DModel",),
        blocks=(BlockList("transformer_blocks", ("encoder_hidden_states", "hidden_states")),),
        roles={
            **attention("attn2?"),
            **added("attn"),
            **feed_forward("ff"),
            **feed_forward("ff_context", "ffn_context"),
            "modulation": r"norm1(_context)?\.linear",
        },
    )
)
