"""A tiny class-conditional pipeline of width 128, and the pieces of a search of it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiTPipeline, DPMSolverMultistepScheduler

from ditquant.recipe import Recipe
from ditquant.search.model import Question
from tests.tiny import tiny

CLASSES = [3, 5]


def tiny_dit_pipeline(seed: int = 0) -> DiTPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    transformer = tiny("dit", seed, attention_head_dim=64, num_embeds_ada_norm=1000, out_channels=4)
    pipeline = DiTPipeline(transformer, vae, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny(folder: Path, seed: int = 0) -> Path:
    tiny_dit_pipeline(seed).save_pretrained(folder)
    return folder


def question(recipe: str = "qdit-w4a8", **changes) -> Question:
    return Question(Recipe.load(recipe), CLASSES, **{"settings": {"steps": 2}} | changes)
