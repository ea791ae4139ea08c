"""Train `video-shapes`: a complete WanPipeline that shows captioned shapes in motion.

    python zoo/train_video_shapes.py --work build/video-shapes --out src/ditquant/assets/video-shapes

Every stage (autoencoder, text encoder, transformer, pipeline) leaves its result in the work folder, so a killed run
goes on where it was. Everything is drawn from `--seed`. The transformer learns the captions on small canvases with few
frames, which cost little, and then the full size.
"""

import argparse
import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch.nn import functional as F
from training import Checkpoint, Muon, autocast, progress, rate_at
from video_text import TEXT_WIDTH, FilledText, encode_texts, make_tokenizer, train_text_encoder
from video_vae import LATENT_CHANNELS, TRAINING, draw_batch, encode_videos, train_decoder, train_vae

from ditquant.evaluation import moving_shapes
from ditquant.evaluation.moving_shapes import FRAMES, SIZE, caption
from ditquant.pipelines.settings import TRAINED_FOR

VAE_STEPS, DECODER_STEPS = 3400, 6000
GUIDANCE = 1.5
WIDTH, HEADS, BLOCKS = 256, 4, 6


def make_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=256,
        ffn_dim=3 * WIDTH,
        num_layers=BLOCKS,
        rope_max_seq_len=64,
    )


def make_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


@dataclass(frozen=True)
class Phase:
    """So many steps on canvases of `size` pixels a side."""

    steps: int
    batch: int
    size: int
    frames: int


FIRST = (Phase(400, 16, 32, 5), Phase(350, 8, 40, FRAMES))  # cheap steps that teach the captions


def phase_at(step: int, phases: tuple[Phase, ...]) -> Phase:
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


class Optimizers:
    """Muon for the matrices of the blocks, AdamW for everything else."""

    def __init__(self, model: WanTransformer3DModel):
        matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if all(p is not m for m in matrices)]
        self.all = (
            Muon(matrices),
            torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01),
        )

    def step(self, rate: float) -> None:
        for optimizer in self.all:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


class Worker:
    """Makes the gradients of its share of a batch; an autoencoder of its own, which keeps state in a call."""

    def __init__(self, model: WanTransformer3DModel, vae: AutoencoderKLWan, texts: torch.Tensor):
        self.model, self.vae, self.texts = model, copy.deepcopy(vae), texts
        self.row = {clip: i for i, clip in enumerate(TRAINING)}

    def __call__(self, phase: Phase, count: int, rng: np.random.Generator) -> tuple[float, list[torch.Tensor]]:
        """Return the loss of `count` videos and its gradients; one video in ten is shown without its caption."""
        device = self.texts.device
        torch.set_num_threads(1)
        videos, clips = draw_batch(count, phase.size, phase.frames, rng, device.type)
        x0 = encode_videos(self.vae, videos)
        shown = [-1 if rng.random() < 0.1 else self.row[clip] for clip in clips]
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(device)
        sigma = torch.sigmoid(torch.from_numpy(rng.normal(1.0, 1.2, count).astype(np.float32))).to(device)
        s = sigma[:, None, None, None, None]
        with autocast(device.type):
            velocity = self.model(
                (1 - s) * x0 + s * noise, timestep=sigma * 1000, encoder_hidden_states=self.texts[shown]
            ).sample
        loss = F.mse_loss(velocity.float(), noise - x0)
        return loss.item(), list(torch.autograd.grad(loss, list(self.model.parameters())))


def begin_from(folder: Path, work: Path) -> None:
    """Put what another pipeline has learned where the stages leave their results; all but the transformer is done."""
    pipeline = WanPipeline.from_pretrained(folder)
    parts = {"vae": pipeline.vae, "decoder": pipeline.vae}
    parts |= {"text_encoder": pipeline.text_encoder, "transformer": pipeline.transformer}
    for name, part in parts.items():
        if not (work / name).exists():
            part.float().save_pretrained(work / name)


def train_transformer(
    work: Path, device: str, seed: int, peak: float, workers: int, phases: tuple[Phase, ...]
) -> WanPipeline:
    """Flow matching on the latents, shared out among threads: on a busy CPU they wait for each other once a step."""
    vae = train_vae(work, VAE_STEPS, device, seed).eval().requires_grad_(False)
    tokenizer = make_tokenizer()
    encoder = train_text_encoder(work, tokenizer, 200, device, seed).eval().requires_grad_(False)
    texts = encode_texts(tokenizer, encoder, [*(caption(clip) for clip in TRAINING), ""])
    torch.manual_seed(seed)
    model = make_transformer()
    if (work / "transformer").exists():
        model = WanTransformer3DModel.from_pretrained(work / "transformer")
    model.to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    for block in model.blocks:
        block.attn2.set_processor(FilledText())
    parameters, optimizers = list(model.parameters()), Optimizers(model)
    checkpoint = Checkpoint(work / "transformer.pt", model=model, average=average, optimizers=optimizers)
    start = (checkpoint.load(), time.time())
    pipeline = WanPipeline(tokenizer, encoder, vae, make_scheduler(), average)
    team, pool = [Worker(model, vae, texts) for _ in range(workers)], ThreadPoolExecutor(workers)
    steps, losses = sum(phase.steps for phase in phases), []
    for step in range(start[0], steps):
        phase = phase_at(step, phases)
        seeds = [np.random.default_rng((seed, 4, step, i)) for i in range(workers)]
        made = list(pool.map(lambda worker, rng: worker(phase, phase.batch // workers, rng), team, seeds))  # noqa: B023
        for i, parameter in enumerate(parameters):
            parameter.grad = sum(gradients[i] for _, gradients in made) / workers
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizers.step(rate_at(step, steps, peak))
        decay = min(0.98, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        losses += [loss for loss, _ in made]
        if step % 20 == 19:
            progress("transformer", step + 1, steps, start, loss=float(np.mean(losses[-20 * workers :])))
        if step % 25 == 24 or step == steps - 1:
            checkpoint.save(step + 1)
        if step % 400 == 399:
            right = evaluate(pipeline, 8, 8, 16 * -(-phase.size // 16), phase.frames)
            print(f"transformer {step + 1} caption accuracy {right:.3f}", flush=True)
    return pipeline


@torch.no_grad()
def evaluate(
    pipeline: WanPipeline, count: int, steps: int, size: int = SIZE, frames: int = FRAMES, seed: int = 0
) -> float:
    """Caption accuracy on held-out prompts."""
    prompts = moving_shapes.prompts(count, seed)
    pipeline.set_progress_bar_config(disable=True)
    videos = []
    for i in range(0, count, 16):
        chosen = prompts[i : i + 16]
        generators = [torch.Generator().manual_seed(seed + i + k) for k in range(len(chosen))]
        with autocast(pipeline.device.type):
            made = pipeline(
                chosen,
                height=size,
                width=size,
                num_frames=frames,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=generators,
            ).frames
        videos += list((made * 255).round().astype(np.uint8))
    return moving_shapes.caption_accuracy(videos, prompts)


def export(pipeline: WanPipeline, out: Path) -> None:
    """Write the finished pipeline in half precision, and what it was trained for into the transformer's config."""
    own = {"frames": FRAMES, "height": SIZE, "width": SIZE, "guidance": GUIDANCE}
    pipeline.transformer.register_to_config(**{TRAINED_FOR: own})
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    for file in (out / "model_index.json", *out.glob("*/config.json")):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if file.parent.name == "text_encoder":
            config["dtype"] = "float32"  # transformers follows its own config, diffusers loads in float32
        file.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument("--start", type=Path, help="a finished pipeline to train further")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="largest learning rate of the transformer")
    parser.add_argument("--steps", type=int, default=600, help="steps at the full size; all there are with --start")
    parser.add_argument("--workers", type=int, default=2, help="threads that share a batch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.start:
        begin_from(args.start, args.work)
    full = Phase(args.steps, 4, SIZE, FRAMES)
    phases = (full,) if args.start else (*FIRST, full)
    pipeline = train_transformer(args.work, args.device, args.seed, args.peak, args.workers, phases)
    pipeline.vae = train_decoder(args.work, DECODER_STEPS, args.device, args.seed)
    export(pipeline, args.out)
    pipeline = WanPipeline.from_pretrained(args.out).to(args.device)
    print(f"caption accuracy on 77 held-out prompts: {evaluate(pipeline, 77, 12, seed=1):.3f}")


if __name__ == "__main__":
    main()
