"""FLUX.1: joint attention of image and text, then parallel blocks on both streams at once."""

from ditquant.models.base import BlockList, ModelFamily, added, attention, feed_forward, register

FLUX = register(
    ModelFamily(
        name="flux",
        transformers=("FluxTransformer2DModel",),
        blocks=(
            BlockList("transformer_blocks", ("encoder_hidden_states", "hidden_states")),
            BlockList("single_transformer_blocks", ("encoder_hidden_states", "hidden_states")),
        ),
        roles={
            **attention("attn"),
            **added("attn"),
            **feed_forward("ff_context", "ffn_context"),
            "ffn_up": r"ff\.net\.0\.proj|proj_mlp",
            "ffn_down": r"ff\.net\.2",
            "single_out": r"proj_out",
            "modulation": r"(norm1(_context)?|norm)\.linear",
        },
    )
)
