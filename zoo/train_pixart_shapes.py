"""Train `pixart-shapes`: a complete PixArtAlphaPipeline that paints captioned scenes of coloured shapes.

    python zoo/train_pixart_shapes.py --work build/pixart-shapes --out src/ditquant/assets/pixart-shapes

Every stage (autoencoder, latents, text encoder, transformer, pipeline) leaves its result in the work folder,
so a killed run goes on where it was. Everything is drawn from `--seed`.
"""

import argparse
import copy
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from training import Checkpoint, autocast, learning_rate, progress
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ditquant.evaluation import shapes

SCENES = 40_000
LATENT_CHANNELS = 4
WIDTH, HEADS, BLOCKS, TEXT_WIDTH = 256, 4, 6, 256


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=shapes.SIZE,
        mid_block_add_attention=False,
    )


def make_transformer() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=BLOCKS,
        cross_attention_dim=WIDTH,
        sample_size=shapes.SIZE // 4,
        patch_size=2,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )


def make_tokenizer() -> T5Tokenizer:
    """Whole words of the captions, and letters for whatever else a user types."""
    words = {w for text in shapes.prompts(2000, held_out=False) for w in text.replace(",", "").split()}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.-'!?")
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), (",", -1.0)]
    vocab += [("▁" + w, -1.0) for w in sorted(words) if len(w) > 1 or w == "a"]
    vocab += [(c, -8.0) for c in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=120)


def make_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    config = T5Config(
        vocab_size=8 * math.ceil(len(tokenizer) / 8),
        d_model=TEXT_WIDTH,
        d_kv=32,
        num_heads=8,
        d_ff=512,
        num_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def make_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)


def draw_batch(count: int, rng: np.random.Generator) -> torch.Tensor:
    """Pictures [count, 3, 64, 64] in [-1, 1]."""
    pictures = np.stack([shapes.draw(shapes.random_scene(rng), rng) for _ in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(work: Path, steps: int, device: str, seed: int) -> AutoencoderKL:
    vae = make_vae().to(device, memory_format=torch.channels_last)
    if (work / "vae").exists():
        return AutoencoderKL.from_pretrained(work / "vae").to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0.0, betas=(0.9, 0.99))
    checkpoint = Checkpoint(work / "vae.pt", vae=vae, optimizer=optimizer)
    start = (checkpoint.load(), time.time())
    for step in range(start[0], steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, 2e-3)
        x = draw_batch(32, np.random.default_rng((seed, 1, step))).to(device, memory_format=torch.channels_last)
        with autocast(device):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        l1 = (y - x).abs().mean()
        (l1 + (y - x).square().mean() + 1e-3 * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49 or step == steps - 1:
            checkpoint.save(step + 1)
            progress("vae", step + 1, steps, start, l1=l1.item(), kl=kl.item())
    vae.save_pretrained(work / "vae")
    return vae


@torch.no_grad()
def encode(work: Path, vae: AutoencoderKL, device: str, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Latents [SCENES, 4, 16, 16] of unit variance and their captions; writes the scaling factor into the VAE."""
    path = work / "latents.safetensors"
    rng = np.random.default_rng((seed, 2))
    scenes = [shapes.random_scene(rng) for _ in range(SCENES)]
    captions = [shapes.caption(scene, rng) for scene in scenes]
    if not path.exists():
        parts = []
        for i in range(0, SCENES, 200):
            x = np.stack(
                [shapes.draw(s, np.random.default_rng((seed, 3, i + k))) for k, s in enumerate(scenes[i : i + 200])]
            )
            x = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1).to(device)
            with autocast(device):
                parts.append(vae.encode(x).latent_dist.mean.float().cpu())
            if i % 6000 == 0:
                print(f"latents {i}/{SCENES}", flush=True)
        save_file({"latents": torch.cat(parts).contiguous()}, path)
    latents = load_file(path)["latents"]
    factor = 1 / latents.std().item()
    vae.register_to_config(scaling_factor=factor)
    return latents * factor, captions


def tokenize(tokenizer: T5Tokenizer, texts: list[str], device: str) -> dict[str, torch.Tensor]:
    tokens = tokenizer(texts, padding="longest", return_tensors="pt")
    return {k: tokens[k].to(device) for k in ("input_ids", "attention_mask")}


class SceneReader(torch.nn.Module):
    """Heads that read the whole scene from the text encoder's output: what the encoder is trained to make readable."""

    def __init__(self):
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(len(shapes.PLACES) + 1, TEXT_WIDTH))
        self.attention = torch.nn.MultiheadAttention(TEXT_WIDTH, 4, batch_first=True)
        kinds = (len(shapes.SHAPES) + 1, len(shapes.COLOURS) + 1, len(shapes.RADIUS) + 1)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(TEXT_WIDTH, n) for n in kinds)

    def forward(self, text: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        queries = self.queries.expand(len(text), -1, -1)
        seen = self.attention(queries, text, text, key_padding_mask=mask == 0, need_weights=False)[0]
        return [head(seen).transpose(1, 2) for head in self.heads]


def scene_labels(scene: shapes.Scene) -> np.ndarray:
    """Shape, colour and size at every place and of the ground, [3, places + 1]; 0 is nothing."""
    labels = np.zeros((3, len(shapes.PLACES) + 1), np.int64)
    for item in scene.items:
        place = list(shapes.PLACES).index(item.place)
        words = (shapes.SHAPES, list(shapes.COLOURS), list(shapes.RADIUS))
        labels[:, place] = [w.index(v) + 1 for w, v in zip(words, (item.shape, item.colour, item.size), strict=True)]
    labels[1, -1] = list(shapes.COLOURS).index(scene.ground) + 1
    return labels


def train_text_encoder(work: Path, tokenizer: T5Tokenizer, steps: int, device: str, seed: int) -> T5EncoderModel:
    """Teach the encoder to bind each shape's words to its place; the transformer then finds them by attention."""
    if (work / "text_encoder").exists():
        return T5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float32).to(device)
    torch.manual_seed(seed)
    encoder, reader = make_text_encoder(tokenizer).to(device), SceneReader().to(device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    start = (0, time.time())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, 1e-3)
        rng = np.random.default_rng((seed, 5, step))
        scenes = [shapes.random_scene(rng) for _ in range(96)]
        tokens = tokenize(tokenizer, [shapes.caption(s, rng) for s in scenes], device)
        labels = torch.from_numpy(np.stack([scene_labels(s) for s in scenes])).to(device)
        with autocast(device):
            text = encoder(**tokens).last_hidden_state
            found = reader(text.float(), tokens["attention_mask"])
        loss = sum(F.cross_entropy(f.float(), labels[:, i]) for i, f in enumerate(found))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            right = all_right(found, labels)
            progress("text encoder", step + 1, steps, start, loss=loss.item(), scenes_read=right)
    encoder.save_pretrained(work / "text_encoder")
    return encoder


def all_right(found: list[torch.Tensor], labels: torch.Tensor) -> float:
    """Share of the scenes that are read without any error."""
    right = torch.stack([f.argmax(1) == labels[:, i] for i, f in enumerate(found)], 1)
    return float(right.flatten(1).all(1).float().mean())


def train_transformer(
    work: Path, steps: int, peak: float, device: str, seed: int, start_folder: Path | None, batch: int = 32
) -> PixArtAlphaPipeline:
    vae = train_vae(work, 2000, device, seed)
    latents, captions = encode(work, vae, device, seed)
    tokenizer = make_tokenizer()
    encoder = train_text_encoder(work, tokenizer, 800, device, seed).eval().requires_grad_(False)
    torch.manual_seed(seed)
    model = make_transformer().to(device)
    if start_folder is not None:
        finished = PixArtTransformer2DModel.from_pretrained(start_folder / "transformer", torch_dtype=torch.float32)
        model.load_state_dict(finished.state_dict())
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint = Checkpoint(work / "transformer.pt", model=model, average=average, optimizer=optimizer)
    start = (checkpoint.load(), time.time())
    pipeline = PixArtAlphaPipeline(tokenizer, encoder, vae, average, make_scheduler())
    losses = []
    for step in range(start[0], steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        rng = np.random.default_rng((seed, 4, step))
        chosen = rng.integers(0, SCENES, batch)
        texts = ["" if rng.random() < 0.1 else captions[i] for i in chosen]
        x0 = latents[torch.from_numpy(chosen)].to(device)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(device)
        sigma = torch.sigmoid(torch.from_numpy(rng.normal(0.4, 1.2, batch).astype(np.float32))).to(device)
        s = sigma[:, None, None, None]
        tokens = tokenize(tokenizer, texts, device)
        with autocast(device):
            with torch.no_grad():
                text = encoder(**tokens).last_hidden_state
            velocity = model(
                (1 - s) * x0 + s * noise,
                encoder_hidden_states=text,
                encoder_attention_mask=tokens["attention_mask"],
                timestep=sigma * 1000,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample
        loss = F.mse_loss(velocity.float(), noise - x0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if step % 100 == 99:
            progress("transformer", step + 1, steps, start, loss=float(np.mean(losses[-100:])))
        if step % 500 == 499 or step == steps - 1:
            checkpoint.save(step + 1)
            print(f"transformer {step + 1} caption accuracy {evaluate(pipeline, 32)[0]:.3f}", flush=True)
    return pipeline


@torch.no_grad()
def evaluate(pipeline: PixArtAlphaPipeline, count: int, seed: int = 0) -> tuple[float, np.ndarray]:
    """Caption accuracy on held-out prompts, and the pictures."""
    prompts = shapes.prompts(count, seed)
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for i in range(0, count, 32):
        generators = [torch.Generator().manual_seed(i + k) for k in range(len(prompts[i : i + 32]))]
        made = pipeline(
            prompts[i : i + 32],
            num_inference_steps=12,
            generator=generators,
            use_resolution_binning=False,
            clean_caption=False,
            output_type="np",
        ).images
        pictures.append((made * 255).round().astype(np.uint8))
    pictures = np.concatenate(pictures)
    return shapes.caption_accuracy(list(pictures), prompts), pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--peak", type=float, default=8e-4, help="largest learning rate of the transformer")
    parser.add_argument("--start", type=Path, help="finished pipeline to train further, instead of from the beginning")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    if args.start is not None:
        for part in ("vae", "text_encoder"):
            shutil.copytree(args.start / part, args.work / part, dirs_exist_ok=True)
    pipeline = train_transformer(args.work, args.steps, args.peak, args.device, args.seed, args.start)
    pipeline.to(dtype=torch.float16).save_pretrained(args.out)
    for file in args.out.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if file.parent.name == "text_encoder":
            config["dtype"] = (
                "float32"  # transformers follows its own config, diffusers loads in float32: let them agree
            )
        file.write_text(json.dumps(config, indent=2) + "\n")
    pipeline = PixArtAlphaPipeline.from_pretrained(args.out).to(args.device)
    print(f"caption accuracy on 512 held-out prompts: {evaluate(pipeline, 512, seed=1)[0]:.3f}")


if __name__ == "__main__":
    main()
