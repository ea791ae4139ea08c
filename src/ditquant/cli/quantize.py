"""`ditquant quantize`: a model in, a quantized checkpoint out."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ditquant import sources
from ditquant.atomic import atomic_folder, check_free
from ditquant.cli.options import Device, Dtype, Model, Overwrite, PromptFile, pick_device, pick_dtype, read_prompts
from ditquant.engine import quantize as run
from ditquant.integrations.diffusers import transformers_of
from ditquant.recipe import Recipe
from ditquant.sizes import measure


def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the quantized model.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name (see `ditquant recipes`) or a YAML file.")] = "lrq-w4a8",
    prompts: PromptFile = None,
    seed: Annotated[int, typer.Option(help="Seed of calibration and rotations.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Quantize MODEL with a recipe and save it.

    --prompts calibrate: eight are usual, and not those you test with.
    """
    check_free(output, overwrite)
    rules = Recipe.load(recipe)
    texts = None if prompts is None else read_prompts(prompts)
    source = sources.find(model)
    sources.check_calibration(source, texts)
    device = pick_device(device)
    loaded = sources.load(source, pick_dtype(dtype, device), device)
    plan = run(loaded, rules, prompts=texts, seed=seed)
    save(loaded, source, output, overwrite)
    for name, part in transformers_of(loaded).items():
        size = measure(part)
        print(
            f"{name or source.class_name}: {len(plan.layers)} layers with {rules.name}, "
            f"{size.bits_per_weight:.2f} bits a weight all-in, {size.total_bytes / 1e6:.1f} MB"
        )
    print(f"saved to {output} (plan {plan.hash()})")


def save(loaded: Any, source: sources.Source, output: Path, overwrite: bool) -> None:
    """Save in the dtype the source was stored in, so that what was not quantized keeps its size and its bits."""
    stored = sources.stored_dtype(source)
    loaded.to("cpu")
    for part in transformers_of(loaded).values() if not source.is_pipeline else _modules(loaded):
        part.to(stored)
    with atomic_folder(output, overwrite) as folder:
        loaded.save_pretrained(folder)


def _modules(pipeline: Any) -> list[torch.nn.Module]:
    return [c for c in pipeline.components.values() if isinstance(c, torch.nn.Module)]
