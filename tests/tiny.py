"""Tiny random models of the real diffusers classes, a forward's inputs for each, and a tiny complete pipeline.

Everything is seeded and built in float32. Widths are multiples of 8, every list of blocks holds at least two.
"""

from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderKL,
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LatteTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

HEADS, HEAD_DIM, TEXT_WIDTH, TEXT_TOKENS = 2, 16, 24, 5
WIDTH = HEADS * HEAD_DIM
PROMPTS = ["a red circle on a blue ground", "a green square", "two crosses on a white ground", "a yellow triangle"]


def tiny_dit(**options) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        **{
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_DIM,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
        }
        | options
    )


def tiny_pixart(**options) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        **{
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_DIM,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": WIDTH,
            "sample_size": 8,
            "patch_size": 2,
            "caption_channels": TEXT_WIDTH,
            "use_additional_conditions": False,
        }
        | options
    )


def tiny_sd3(**options) -> SD3Transformer2DModel:
    """One of its blocks has the second self-attention of SD3.5, the last one drops the text."""
    return SD3Transformer2DModel(
        **{
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": HEADS,
            "joint_attention_dim": TEXT_WIDTH,
            "caption_projection_dim": WIDTH,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        }
        | options
    )


def tiny_flux(**options) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        **{
            "patch_size": 1,
            "in_channels": 8,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": HEADS,
            "joint_attention_dim": TEXT_WIDTH,
            "pooled_projection_dim": 16,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 4, 8),
        }
        | options
    )


def tiny_cogvideox(**options) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        **{
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_DIM,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": TEXT_WIDTH,
            "num_layers": 2,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 5,
            "patch_size": 2,
            "max_text_seq_length": TEXT_TOKENS,
        }
        | options
    )


def tiny_wan(**options) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        **{
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_DIM,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": TEXT_WIDTH,
            "freq_dim": 16,
            "ffn_dim": 64,
            "num_layers": 2,
            "rope_max_seq_len": 16,
        }
        | options
    )


def tiny_hunyuan_video(**options) -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_DIM,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 2,
            "text_embed_dim": TEXT_WIDTH,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 4, 8),
        }
        | options
    )


def tiny_latte(**options) -> LatteTransformer3DModel:
    return LatteTransformer3DModel(
        **{
            "num_attention_heads": HEADS,
            "attention_head_dim": HEAD_DIM,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": WIDTH,
            "attention_bias": True,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 10,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": TEXT_WIDTH,
            "video_length": 2,
        }
        | options
    )


TINY: dict[str, Callable[..., nn.Module]] = {
    "dit": tiny_dit,
    "pixart": tiny_pixart,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "cogvideox": tiny_cogvideox,
    "wan": tiny_wan,
    "hunyuan_video": tiny_hunyuan_video,
    "latte": tiny_latte,
}


def tiny(name: str, seed: int = 0, **options) -> nn.Module:
    """Build one of TINY from a seed, in eval mode; parameters that start at zero become small noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TINY[name](**options).eval()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return model


def inputs(model: nn.Module, batch: int = 2, seed: int = 0) -> dict:
    """Keyword arguments of one forward of a model of TINY, in the model's dtype and on its device."""
    generator = torch.Generator().manual_seed(seed)
    like = next(p for p in model.parameters() if p.is_floating_point())

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(like)

    def whole(values: int | list[int]) -> torch.Tensor:
        return torch.tensor([values] * batch, device=like.device)

    text = noise(batch, TEXT_TOKENS, TEXT_WIDTH)
    mask = whole([1] * (TEXT_TOKENS - 1) + [0])
    image = {"timestep": whole(7), "return_dict": False}
    match type(model).__name__.removesuffix("Model").removesuffix("2D").removesuffix("3D"):
        case "DiTTransformer":
            return image | {"hidden_states": noise(batch, 4, 8, 8), "class_labels": whole(3)}
        case "PixArtTransformer":
            return image | {
                "hidden_states": noise(batch, 4, 8, 8),
                "encoder_hidden_states": text,
                "encoder_attention_mask": mask,
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            }
        case "SD3Transformer":
            pooled = noise(batch, 16)
            return image | {
                "hidden_states": noise(batch, 4, 8, 8),
                "encoder_hidden_states": text,
                "pooled_projections": pooled,
            }
        case "FluxTransformer":
            return image | {
                "hidden_states": noise(batch, 16, 8),
                "encoder_hidden_states": text,
                "pooled_projections": noise(batch, 16),
                "timestep": noise(batch).sigmoid(),
                "guidance": torch.full((batch,), 3.5).to(like),
                "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)).to(like),
                "txt_ids": torch.zeros(TEXT_TOKENS, 3).to(like),
            }
        case "CogVideoXTransformer":
            return image | {"hidden_states": noise(batch, 2, 4, 4, 4), "encoder_hidden_states": text}
        case "WanTransformer":
            return image | {"hidden_states": noise(batch, 4, 2, 4, 4), "encoder_hidden_states": text}
        case "HunyuanVideoTransformer":
            return image | {
                "hidden_states": noise(batch, 4, 2, 4, 4),
                "encoder_hidden_states": text,
                "encoder_attention_mask": mask,
                "pooled_projections": noise(batch, 16),
                "guidance": torch.full((batch,), 6000.0).to(like),
            }
        case "LatteTransformer":
            return image | {"hidden_states": noise(batch, 4, 2, 8, 8), "encoder_hidden_states": text}
    raise KeyError(f"no inputs are written down for {type(model).__name__}")


@torch.no_grad()
def run(model: nn.Module, **options) -> torch.Tensor:
    """Return the output of one forward on `inputs(model, **options)`."""
    return model(**inputs(model, **options))[0]


def tiny_tokenizer() -> T5Tokenizer:
    words = sorted({word for text in PROMPTS for word in text.split()})
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [("▁" + word, -1.0) for word in words] + [(chr(c), -8.0) for c in range(ord("a"), ord("z") + 1)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=16)


def tiny_pixart_pipeline(seed: int = 0, **transformer_options) -> PixArtAlphaPipeline:
    """Build a complete random pipeline for pictures of 32x32 pixels; see `paint`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=8 * -(-len(tokenizer) // 8),
                d_model=TEXT_WIDTH,
                d_kv=8,
                num_heads=2,
                d_ff=32,
                num_layers=1,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        ).eval()
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
            mid_block_add_attention=False,
        ).eval()
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    transformer = tiny("pixart", seed, **transformer_options)
    pipeline = PixArtAlphaPipeline(tokenizer, text_encoder, vae, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline: PixArtAlphaPipeline, prompts: list[str] | None = None, steps: int = 2, seed: int = 0):
    """Return the pictures [count, 32, 32, 3] of a tiny pipeline in [0, 1], one generator a picture."""
    prompts = PROMPTS[:2] if prompts is None else prompts
    return pipeline(
        prompts,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
        use_resolution_binning=False,
        clean_caption=False,
        output_type="np",
    ).images
