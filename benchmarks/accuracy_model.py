"""The model that `accuracy.py` quantizes again and again: calibration calls, trajectories and injected channels."""

import copy
import hashlib
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ditquant
from ditquant import sources
from ditquant.calibration import run_prompts
from ditquant.evaluation import shapes
from ditquant.evaluation.generate import generate
from ditquant.evaluation.steps import Trajectory, record, step_sqnr_db
from ditquant.recipe import Recipe
from ditquant.sizes import measure

MODEL = "pixart-shapes"
CALLS_A_PROMPT = 4  # of the 20 steps of a prompt, spread evenly over all
TEST_PROMPTS, STEPS, PICTURES = 8, 12, 64
SALIENT_BLOCKS, SALIENT_CHANNELS, SALIENT_FACTOR = (1, 3), 8, 64.0  # a power of two: no bit of a product changes
_GOLDEN = (5**0.5 - 1) / 2


def digest() -> str:
    """Return what tells these weights from others."""
    files = sorted((Path(sources.find(MODEL).local()) / "transformer").glob("*.safetensors"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


@cache
def pipeline() -> Any:
    """Load the model once a process."""
    return sources.load_pipeline(MODEL, torch.float32)


@cache
def calls(prompts: int, seed: int) -> list[tuple[tuple, dict]]:
    """Return transformer calls of training captions, spread over prompts and steps by a golden-ratio sequence."""
    pipe, seen = pipeline(), []
    handle = pipe.transformer.register_forward_pre_hook(lambda _m, a, k: seen.append((a, k)), with_kwargs=True)
    run_prompts(pipe, shapes.prompts(prompts, seed=100 + seed, held_out=False), seed)
    handle.remove()
    order = sorted(range(len(seen)), key=lambda i: (i * _GOLDEN) % 1)
    return [seen[i] for i in sorted(order[: CALLS_A_PROMPT * prompts])]


@cache
def trajectory(seed: int) -> Trajectory:
    """Return the full-precision trajectory of held-out captions."""
    texts = shapes.prompts(TEST_PROMPTS, seed=200 + seed)
    paint = partial(
        generate, pipeline(), texts, seeds=1000 * seed, steps=STEPS, batch_size=TEST_PROMPTS, progress=False
    )
    return record(pipeline(), TEST_PROMPTS, paint)


def inject(model: nn.Module) -> list[str]:
    """Make some input channels of attention outputs salient, and return the names of those layers.

    Attention only averages the values of tokens, channel by channel: what `to_v` makes larger, `to_out` takes back.
    """
    changed = []
    for block in SALIENT_BLOCKS:
        name = f"transformer_blocks.{block}.attn1"
        attention = model.get_submodule(name)
        channels = torch.randperm(attention.to_v.out_features, generator=torch.Generator().manual_seed(block))
        channels = channels[:SALIENT_CHANNELS]
        with torch.no_grad():
            attention.to_v.weight[channels] *= SALIENT_FACTOR
            attention.to_v.bias[channels] *= SALIENT_FACTOR
            attention.to_out[0].weight[:, channels] /= SALIENT_FACTOR
        changed.append(f"{name}.to_out.0")
    return changed


def measured(recipe: Recipe, seed: int, prompts: int, salient: bool) -> dict[str, Any]:
    """Quantize a copy with a recipe and measure it on the full-precision trajectory of unchanged weights."""
    pipe, calibration, truth = pipeline(), calls(prompts, seed), trajectory(seed)
    full = pipe.transformer
    model = copy.deepcopy(full)
    injected = inject(model) if salient else []
    forward = partial(run_all, calibration)
    ditquant.quantize(model, recipe, forward=forward, seed=seed, max_calls=len(calibration))
    try:
        pipe.transformer = model
        by_prompt, _ = step_sqnr_db(pipe, truth)
    finally:
        pipe.transformer = full
    found = {"step_sqnr_db": [round(v, 3) for v in by_prompt], "bits": round(measure(model).bits_per_weight, 3)}
    return found | {"injected": injected, "dual": _dual(model)}


def _dual(model: nn.Module) -> list[str]:
    """Name the layers that got the dual rotation."""
    return [
        name
        for name, module in model.named_modules()
        if any(t.kind == "fast_dual_rotation" for t in getattr(getattr(module, "plan", None), "transforms", ()))
    ]


def captions(recipe: Recipe | None, seed: int) -> dict[str, Any]:
    """Paint held-out captions with a quantized model (None: in full precision): 1 for each that shows its scene."""
    pipe = pipeline()
    full = pipe.transformer
    texts = shapes.prompts(PICTURES, seed=300 + seed)
    try:
        if recipe is not None:
            pipe.transformer = copy.deepcopy(full)
            calibration = calls(8, seed)
            forward = partial(run_all, calibration)
            ditquant.quantize(pipe.transformer, recipe, forward=forward, seed=seed, max_calls=len(calibration))
        made = generate(pipe, texts, seeds=2000 + 100 * seed, steps=STEPS, batch_size=32, progress=False)
    finally:
        pipe.transformer = full
    pairs = zip(made.images, texts, strict=True)
    return {"caption_accuracy": [shapes.caption_accuracy([image], [text]) for image, text in pairs]}


def run_all(calibration: list[tuple[tuple, dict]], model: nn.Module) -> None:
    for args, kwargs in calibration:
        model(*args, **kwargs)
