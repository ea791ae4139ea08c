"""A random pipeline that makes videos."""

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline

from tests.tiny import tiny, tiny_pixart_pipeline


def tiny_video_pipeline() -> CogVideoXPipeline:
    """Build a complete pipeline for videos of 9 frames of 16x16 pixels."""
    torch.manual_seed(0)
    text = tiny_pixart_pipeline()
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_height=16,
        sample_width=16,
    ).eval()
    transformer = tiny("cogvideox", max_text_seq_length=226)
    pipeline = CogVideoXPipeline(text.tokenizer, text.text_encoder, vae, transformer, CogVideoXDDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
