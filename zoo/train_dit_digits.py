"""Train `dit-digits`: a complete DiTPipeline that writes handwritten digits of the class asked for.

    python zoo/train_dit_digits.py --work build/dit-digits --out src/ditquant/assets/dit-digits

Every stage (classifier, autoencoder, transformer, pipeline) leaves its result in the work folder, so a killed run goes
on where it was. Everything is drawn from `--seed`. Needs scikit-learn, whose digits these are.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F
from training import Checkpoint, autocast, learning_rate, progress

from ditquant.evaluation.digits import CLASSES, JUDGE, SIZE, DigitClassifier, Judge, class_accuracy

HELD_OUT = 497
LATENT_CHANNELS, LATENT_SIZE = 4, 8
WIDTH, HEADS, BLOCKS = 384, 6, 4
NO_CLASS = 1000  # what DiTPipeline asks for in place of a class; the model's table must reach up to it


def digits(held_out: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey pictures [B, 1, 32, 32] in [-1, 1] and their classes: those held out from training, or the others."""
    data = load_digits()
    order = np.random.default_rng((seed, 0)).permutation(len(data.target))
    chosen = order[:HELD_OUT] if held_out else order[HELD_OUT:]
    small = torch.from_numpy(data.images[chosen]).float()[:, None] / 8 - 1
    grey = F.interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return grey, torch.from_numpy(data.target[chosen])


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def make_transformer() -> DiTTransformer2DModel:
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=BLOCKS,
        sample_size=LATENT_SIZE,
        patch_size=1,
        num_embeds_ada_norm=NO_CLASS,
    )
    # every block and the output begin as nothing, as in the DiT paper (arXiv 2212.09748)
    for layer in [*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def make_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def train_judge(work: Path, steps: int, seed: int) -> Judge:
    """Train the classifier on shifted and noisy digits, and keep what it sees in the held-out ones."""
    path = work / JUDGE
    if path.exists():
        return Judge.load(path)
    torch.manual_seed(seed)
    model, (grey, labels) = DigitClassifier(), digits(False, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.05)
    start = (0, time.time())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, 2e-3)
        rng = np.random.default_rng((seed, 1, step))
        chosen = torch.from_numpy(rng.integers(0, len(grey), 128))
        x = torch.roll(grey[chosen], tuple(rng.integers(-3, 4, 2).tolist()), (2, 3))
        x = x + 0.1 * torch.from_numpy(rng.standard_normal(x.shape, np.float32))
        loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.02)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 199:
            progress("classifier", step + 1, steps, start, loss=loss.item())
    grey, labels = digits(True, seed)
    with torch.no_grad():
        features, logits = model.features(grey), model(grey)
    print(f"classifier: {np.mean(class_accuracy(logits, labels.tolist())):.4f} of the held-out digits", flush=True)
    reference = {"reference.features": features, "reference.logits": logits, "reference.labels": labels}
    save_file(model.state_dict() | reference, path)
    return Judge.load(path)


def train_vae(work: Path, steps: int, device: str, seed: int) -> AutoencoderKL:
    if (work / "vae").exists():
        return AutoencoderKL.from_pretrained(work / "vae").to(device)
    torch.manual_seed(seed)
    vae = make_vae().to(device)
    pictures = digits(False, seed)[0].expand(-1, 3, -1, -1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0.0, betas=(0.9, 0.99))
    checkpoint = Checkpoint(work / "vae.pt", vae=vae, optimizer=optimizer)
    start = (checkpoint.load(), time.time())
    for step in range(start[0], steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, 2e-3)
        chosen = torch.from_numpy(np.random.default_rng((seed, 2, step)).integers(0, len(pictures), 32))
        x = pictures[chosen].to(device)
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
    with torch.no_grad():
        vae.register_to_config(scaling_factor=1 / vae.encode(pictures.to(device)).latent_dist.mean.std().item())
    vae.save_pretrained(work / "vae")
    return vae


def train_transformer(work: Path, args: argparse.Namespace) -> DiTPipeline:
    """Flow matching on the latents; one picture in ten is shown without its class, for guidance."""
    device, seed, steps = args.device, args.seed, args.steps
    judge = train_judge(work, 2000, seed)
    vae = train_vae(work, 800, device, seed)
    pictures, labels = digits(False, seed)
    with torch.no_grad():
        latents = vae.encode(pictures.expand(-1, 3, -1, -1).to(device)).latent_dist.mean * vae.config.scaling_factor
    torch.manual_seed(seed)
    model = make_transformer().to(device).eval()  # in training mode every block would leave classes out on its own
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint = Checkpoint(work / "transformer.pt", model=model, average=average, optimizer=optimizer)
    start = (checkpoint.load(), time.time())
    names = {i: name for i, name in enumerate(CLASSES)}
    pipeline = DiTPipeline(average, vae, make_scheduler(), id2label=names)
    losses = []
    for step in range(start[0], steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, args.peak)
        rng = np.random.default_rng((seed, 3, step))
        chosen = torch.from_numpy(rng.integers(0, len(latents), args.batch))
        shown = torch.from_numpy(np.where(rng.random(args.batch) < 0.1, NO_CLASS, labels[chosen].numpy()))
        x0 = latents[chosen.to(device)]
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(device)
        sigma = torch.sigmoid(torch.from_numpy(rng.normal(0.2, 1.2, args.batch).astype(np.float32))).to(device)
        s = sigma[:, None, None, None]
        with autocast(device):
            velocity = model((1 - s) * x0 + s * noise, timestep=sigma * 1000, class_labels=shown.to(device)).sample
        loss = F.mse_loss(velocity.float(), noise - x0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if step % 25 == 24:
            progress("transformer", step + 1, steps, start, loss=float(np.mean(losses[-100:])))
        if step % 250 == 249 or step == steps - 1:
            checkpoint.save(step + 1)
            print(f"transformer {step + 1} class accuracy {evaluate(pipeline, judge, 50):.3f}", flush=True)
    return pipeline


@torch.no_grad()
def evaluate(pipeline: DiTPipeline, judge: Judge, count: int, seed: int = 0) -> float:
    """Class accuracy of `count` pictures, of every class as many."""
    pipeline.set_progress_bar_config(disable=True)
    labels, logits = [i % len(CLASSES) for i in range(count)], []
    for i in range(0, count, 50):
        generators = [torch.Generator().manual_seed(seed + i + k) for k in range(len(labels[i : i + 50]))]
        made = pipeline(
            labels[i : i + 50], guidance_scale=1.5, num_inference_steps=12, generator=generators, output_type="np"
        ).images
        logits.append(judge.see(list((made * 255).round().astype(np.uint8))).logits)
    return float(np.mean(class_accuracy(torch.cat(logits), labels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=6e-4, help="largest learning rate of the transformer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    pipeline = train_transformer(args.work, args)
    for block in pipeline.transformer.transformer_blocks:  # rows that no class has are noise that would not compress
        block.norm1.emb.class_embedder.embedding_table.weight.data[len(CLASSES) : NO_CLASS] = 0
    pipeline.to(dtype=torch.float16).save_pretrained(args.out)
    # diffusers does not write the names of the classes
    index = args.out / "model_index.json"
    names = {str(i): name for i, name in enumerate(CLASSES)}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}, indent=2) + "\n")
    save_file(load_file(args.work / JUDGE), args.out / JUDGE)
    pipeline = DiTPipeline.from_pretrained(args.out).to(args.device)
    print(f"class accuracy of 200 pictures: {evaluate(pipeline, Judge.load(args.out / JUDGE), 200, seed=10_000):.3f}")


if __name__ == "__main__":
    main()
