"""`ditquant demo`: the whole main job on the shipped model, in a few minutes on a CPU."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from ditquant import sources
from ditquant.atomic import atomic_folder, check_free
from ditquant.calibration import collect, run_prompts
from ditquant.cli.facts import describe
from ditquant.cli.options import Overwrite
from ditquant.cli.show import show
from ditquant.engine import quantize
from ditquant.evaluation import (
    Plot,
    Sampling,
    Table,
    compare,
    drawn,
    plot_activation_outliers,
    plot_codebook,
    results_table,
    shapes,
    write_comparison,
)
from ditquant.formats.twin_log import codebook
from ditquant.nn import QuantLinear

MODEL = "pixart-shapes"
RECIPES = ("lrq-w4a8", "lrq-w4a4", "lrq-w3a8", "rtn-w3a8")
BATCH = 32
FIRST_SEED = 1000


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report and the models.")] = Path(
        "out/demo"
    ),
    count: Annotated[int, typer.Option("--prompts", help="How many held-out prompts are painted.")] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Quantize the shipped model four ways, save, reload in a new process, paint held-out prompts, and report."""
    begin = time.perf_counter()
    check_free(output, overwrite)
    with atomic_folder(output, overwrite) as folder:
        plots = quantize_all(folder)
        print(f"painting {count} held-out prompts with each model, in a new process")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            table = pool.apply(compare_saved, (folder, count, plots))
    show(table)
    print(f"{time.perf_counter() - begin:.0f} s in all; pictures and plots in {output / 'report.html'}")


def quantize_all(folder: Path) -> list[Plot]:
    """Save the model quantized with every recipe, and plot what happened to one layer."""
    calibration = shapes.prompts(8, seed=1, held_out=False)
    layers: dict[str, QuantLinear] = {}
    probe = ""
    for recipe in RECIPES:
        pipeline = sources.load_pipeline(MODEL, torch.float32)
        blocks = pipeline.transformer.transformer_blocks
        probe = f"transformer_blocks.{len(blocks) // 2}.ff.net.2"
        original = pipeline.transformer.get_submodule(probe).weight.detach().clone()
        print(f"quantizing {MODEL} with {recipe}, calibrated on {len(calibration)} prompts")
        quantize(pipeline, recipe, prompts=calibration)
        layers[recipe] = pipeline.transformer.get_submodule(probe)
        pipeline.to(torch.float16).save_pretrained(folder / "models" / recipe)
    pipeline = sources.load_pipeline(MODEL, torch.float32)
    linear = pipeline.transformer.get_submodule(probe)
    seen = collect({probe: linear}, partial(run_prompts, pipeline, calibration[:1]))[probe]
    return plot_layer(probe, original, {"4 bits": layers["lrq-w4a8"], "3 bits": layers["lrq-w3a8"]}, seen.sample)


def plot_layer(name: str, weight: Tensor, layers: dict[str, QuantLinear], inputs: Tensor) -> list[Plot]:
    """Plot a row of weights against its code books, and the inputs before and after the transforms."""
    panels = {}
    for label, layer in layers.items():
        transformed = weight
        for transform in layer.transforms:
            transformed = transform.absorb(transformed)
        panels[label] = (transformed[0], codebook(layer.packed().params, layer.plan.weight.bits)[0, 0])
    after = next(iter(layers.values())).transform(inputs)
    return [
        drawn(plot_codebook, panels, title=f"One row of {name} and its code book"),
        drawn(
            plot_activation_outliers, inputs, after, title=f"Inputs of {name}, before and after smoothing and rotation"
        ),
    ]


def compare_saved(folder: Path, count: int, plots: Sequence[Plot]) -> Table:
    """Load the saved models one after the other, paint, and write the report into the folder."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    paths = {recipe: str(folder / "models" / recipe) for recipe in RECIPES}
    results = compare(
        partial(sources.load_pipeline, MODEL, torch.float32),
        {recipe: partial(sources.load_pipeline, path, torch.float32) for recipe, path in paths.items()},
        shapes.prompts(count, seed=2),
        FIRST_SEED,
        sampling=Sampling(batch_size=BATCH),
        reference_name=MODEL,
        describe=lambda name, pipeline: describe(paths.get(name, MODEL), pipeline),
    )
    write_comparison(results, folder / "report", title=f"{MODEL}, quantized", plots=plots)
    for path in (folder / "report").iterdir():
        path.rename(folder / path.name)
    (folder / "report").rmdir()
    return results_table(results)
