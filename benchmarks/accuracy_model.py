"""The models that `accuracy.py` quantizes again and again: calibration calls, trajectories and injected channels."""

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
from ditquant.evaluation.digits import Judge, class_accuracy
from ditquant.evaluation.generate import generate
from ditquant.evaluation.steps import Trajectory, record, step_sqnr_db
from ditquant.recipe import Recipe
from ditquant.sizes import measure

SHAPES, DIGITS = MODELS = ("pixart-shapes", "dit-digits")
CALLS_A_PROMPT = 4  # of the 20 steps of a prompt, spread evenly over all
TEST_PROMPTS, STEPS, PICTURES = 8, 12, 64
CLASSES = 10  # of digits
SALIENT_BLOCKS, SALIENT_CHANNELS, SALIENT_FACTOR = (1, 3), 8, 64.0  # a power of two: no bit of a product changes
_GOLDEN = (5**0.5 - 1) / 2


def digest(model: str) -> str:
    """Return what tells a model's weights from others."""
    files = sorted((Path(sources.find(model).local()) / "transformer").glob("*.safetensors"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


@cache
def pipeline(model: str = SHAPES) -> Any:
    """Load a model once a process."""
    return sources.load_pipeline(model, torch.float32)


def conditions(model: str, count: int, seed: int, held_out: bool) -> list[Any]:
    """Return captions, or classes of digits; those held out are none of those that calibrate with the same seed."""
    if model == SHAPES:
        return shapes.prompts(count, seed=(200 if held_out else 100) + seed, held_out=held_out)
    classes = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed)).tolist()
    half = classes[CLASSES // 2 :] if held_out else classes[: CLASSES // 2]
    return [half[i % len(half)] for i in range(count)]


@cache
def calls(prompts: int, seed: int, model: str = SHAPES) -> list[tuple[tuple, dict]]:
    """Return transformer calls of calibration, spread over prompts and steps by a golden-ratio sequence."""
    pipe, seen = pipeline(model), []
    handle = pipe.transformer.register_forward_pre_hook(lambda _m, a, k: seen.append((a, k)), with_kwargs=True)
    run_prompts(pipe, conditions(model, prompts, seed, held_out=False), seed)
    handle.remove()
    order = sorted(range(len(seen)), key=lambda i: (i * _GOLDEN) % 1)
    return [seen[i] for i in sorted(order[: CALLS_A_PROMPT * prompts])]


@cache
def trajectory(seed: int, model: str) -> Trajectory:
    """Return the full-precision trajectory of what is held out."""
    pipe, texts = pipeline(model), conditions(model, TEST_PROMPTS, seed, held_out=True)
    paint = partial(generate, pipe, texts, seeds=1000 * seed, steps=STEPS, batch_size=TEST_PROMPTS, progress=False)
    return record(pipe, TEST_PROMPTS, paint)


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


def measured(recipe: Recipe, seed: int, prompts: int, salient: bool, name: str = SHAPES) -> dict[str, Any]:
    """Quantize a copy with a recipe and measure it on the full-precision trajectory of unchanged weights."""
    pipe, calibration, truth = pipeline(name), calls(prompts, seed, name), trajectory(seed, name)
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


def painted(recipe: Recipe | None, seed: int, name: str = SHAPES) -> dict[str, Any]:
    """Paint what is held out with a quantized model (None: in full precision): 1 for each picture that shows it."""
    pipe = pipeline(name)
    full = pipe.transformer
    if name == SHAPES:
        wanted: list[Any] = shapes.prompts(PICTURES, seed=300 + seed)
    else:
        wanted = conditions(name, PICTURES, seed, held_out=True)
    try:
        if recipe is not None:
            pipe.transformer = copy.deepcopy(full)
            calibration = calls(8, seed, name)
            forward = partial(run_all, calibration)
            ditquant.quantize(pipe.transformer, recipe, forward=forward, seed=seed, max_calls=len(calibration))
        made = generate(pipe, wanted, seeds=2000 + 100 * seed, steps=STEPS, batch_size=32, progress=False)
    finally:
        pipe.transformer = full
    if name == DIGITS:
        return {"accuracy": class_accuracy(Judge.load().see(made.images).logits, wanted)}
    pairs = zip(made.images, wanted, strict=True)
    return {"accuracy": [shapes.caption_accuracy([image], [text]) for image, text in pairs]}


def run_all(calibration: list[tuple[tuple, dict]], model: nn.Module) -> None:
    for args, kwargs in calibration:
        model(*args, **kwargs)
