"""The autoencoder of `video-shapes`: four pixels to a latent's side, two frames to a latent after the first."""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from training import Checkpoint, autocast, descend, progress, rate_at

from ditquant.evaluation import moving_shapes
from ditquant.evaluation.moving_shapes import CLIPS, FRAMES, SIZE, Clip, is_held_out

LATENT_CHANNELS = 8
TRAINING = [clip for clip in CLIPS if not is_held_out(clip)]


def make_vae() -> AutoencoderKLWan:
    """Four pixels to a latent's side, two frames to a latent after the first."""
    return AutoencoderKLWan(
        base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        in_channels=12,  # 2x2 pixels of three colours
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )


def draw_batch(
    count: int, size: int, frames: int, rng: np.random.Generator, device: str
) -> tuple[torch.Tensor, list[Clip]]:
    """Draw videos [count, 3, frames, size, size] in [-1, 1] of clips that are not held out."""
    clips = [TRAINING[i] for i in rng.integers(0, len(TRAINING), count)]
    videos = np.stack([moving_shapes.draw(clip, rng, size, frames) for clip in clips])
    return torch.from_numpy(videos).to(device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, clips


def train_vae(work: Path, steps: int, device: str, seed: int) -> AutoencoderKLWan:
    """Train encoder and decoder together; the latents stay as they are from here on."""
    if (work / "vae").exists():
        return AutoencoderKLWan.from_pretrained(work / "vae").to(device)
    torch.manual_seed(seed)
    vae = make_vae().to(device)
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -5.0)  # begin with little noise on the latents
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0.0, betas=(0.9, 0.99))
    checkpoint = Checkpoint(work / "vae.pt", vae=vae, optimizer=optimizer)
    start = (checkpoint.load(), time.time())
    for step in range(start[0], steps):
        x = vae_batch(step, (4, 24, 5), np.random.default_rng((seed, 1, step)), device)
        with autocast(device):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        l1 = video_loss(y, x)
        (l1 + 1e-4 * kl).backward()
        descend(optimizer, rate_at(step, steps, 2e-3))
        if step % 20 == 19 or step == steps - 1:
            checkpoint.save(step + 1)
            progress("vae", step + 1, steps, start, l1=l1.item(), kl=kl.item())
    _measure_latents(vae, device, seed)
    vae.save_pretrained(work / "vae")
    return vae


def vae_batch(step: int, small: tuple[int, int, int], rng: np.random.Generator, device: str) -> torch.Tensor:
    """`small` videos (their number, size and frames), and one of the full size at every fourth step."""
    return draw_batch(*(small if step % 4 else (1, SIZE, FRAMES)), rng, device)[0]


def video_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """L1 distance in which the shape counts ten times the ground, which most pixels show."""
    ground = x.flatten(2).median(2).values[:, :, None, None, None]
    weight = 1 + 9 * ((x - ground).abs().amax(1, keepdim=True) > 0.05)
    return (weight * (y - x).abs()).mean() / weight.float().mean()


def train_decoder(work: Path, steps: int, device: str, seed: int) -> AutoencoderKLWan:
    """Train the decoder further, on latents as they are drawn from now on."""
    if (work / "decoder").exists():
        return AutoencoderKLWan.from_pretrained(work / "decoder").to(device)
    vae = AutoencoderKLWan.from_pretrained(work / "vae").to(device)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.99))
    checkpoint = Checkpoint(work / "decoder.pt", vae=vae, optimizer=optimizer)
    start = (checkpoint.load(), time.time())
    for step in range(start[0], steps):
        x = vae_batch(step, (2, 32, FRAMES), np.random.default_rng((seed, 5, step)), device)
        with autocast(device):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample()
            y = vae.decode(latents).sample.float()
        loss = video_loss(y, x)
        loss.backward()
        descend(optimizer, rate_at(step, steps, 2e-3))
        if step % 50 == 49 or step == steps - 1:
            checkpoint.save(step + 1)
            progress("decoder", step + 1, steps, start, l1=loss.item())
    vae.save_pretrained(work / "decoder")
    return vae


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLWan, device: str, seed: int) -> None:
    """Write the mean and the standard deviation of every channel into the configuration."""
    rng = np.random.default_rng((seed, 2))
    seen = torch.cat([vae.encode(draw_batch(8, SIZE, FRAMES, rng, device)[0]).latent_dist.mean for _ in range(16)])
    mean, std = (f(seen.double(), (0, 2, 3, 4)).tolist() for f in (torch.mean, torch.std))
    vae.register_to_config(latents_mean=mean, latents_std=std)


@torch.no_grad()
def encode_videos(vae: AutoencoderKLWan, videos: torch.Tensor) -> torch.Tensor:
    """Return latents [B, C, F, H, W] of zero mean and unit variance."""
    mean, std = (torch.tensor(x, device=videos.device).view(1, -1, 1, 1, 1) for x in latent_scale(vae))
    with autocast(videos.device.type):
        return (vae.encode(videos).latent_dist.mean.float() - mean) / std


def latent_scale(vae: AutoencoderKLWan) -> tuple[list[float], list[float]]:
    return vae.config.latents_mean, vae.config.latents_std
