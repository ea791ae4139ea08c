"""DiT: self-attention and feed-forward; every block has its own timestep and class embedder."""

from ditquant.models.base import BlockList, ModelFamily, attention, feed_forward, register

DIT = register(
    ModelFamily(
        name="dit",
        transformers=("DiTTransformer2DModel",),
        blocks=(BlockList("transformer_blocks", ("hidden_states",)),),
        roles={
            **attention("attn1"),
            **feed_forward("ff"),
            "modulation": r"norm1\.linear",
            "embedding": r"norm1\.emb\..+",
        },
    )
)
