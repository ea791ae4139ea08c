"""`ditquant demo`: the whole main job on the shipped model, in a few minutes on a CPU."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditquant.atomic import atomic_folder, check_free
from ditquant.cli.options import Overwrite
from ditquant.cli.quantize import save
from ditquant.cli.show import show

if TYPE_CHECKING:
    from torch import Tensor

    from ditquant.evaluation import Plot, Table
    from ditquant.nn import QuantLinear

MODEL = "pixart-shapes"
RECIPES = ("lrq-w4a8", "lrq-w4a4", "lrq-w3a8", "rtn-w3a8")
STEPS = 12
BATCH = 32
FIRST_SEED = 1000
CALIBRATION_PROMPTS = 8


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report and the models.")] = Path(
        "out/demo"
    ),
    count: Annotated[int, typer.Option("--prompts", min=1, help="How many held-out prompts are painted.")] = 64,
    overwrite: Overwrite = False,
) -> None:
    """Quantize the shipped model four ways, save, reload in a new process, paint held-out prompts, and report."""
    begin = time.perf_counter()
    check_free(output, overwrite)
    with atomic_folder(output, overwrite) as folder:
        plots = quantize_all(folder)
        print(f"painting {count} held-out prompts with each model, in a new process", flush=True)
        pool = multiprocessing.get_context("spawn").Pool(1)
        try:
            table = pool.apply(compare_saved, (folder, count, plots))
        finally:
            pool.close()
            pool.join()
    show(table)
    print(f"{time.perf_counter() - begin:.0f} s in all; pictures and plots in {output / 'report.html'}")


def quantize_all(folder: Path) -> list[Plot]:
    """Save the model quantized with every recipe, and plot what happened to one layer."""
    import torch

    from ditquant import sources
    from ditquant.calibration import collect, run_prompts
    from ditquant.engine import quantize
    from ditquant.evaluation import shapes

    source = sources.find(MODEL)
    calibration = shapes.prompts(CALIBRATION_PROMPTS, seed=1, held_out=False)
    layers: dict[str, QuantLinear] = {}
    for recipe in RECIPES:
        print(f"quantizing {MODEL} with {recipe}, calibrated on {len(calibration)} prompts", flush=True)
        pipeline = sources.load(source, torch.float32)
        quantize(pipeline, recipe, prompts=calibration, settings={"steps": STEPS})
        layers[recipe] = pipeline.transformer.get_submodule(probe(pipeline))
        save(pipeline, source, folder / "models" / recipe, overwrite=False)
    pipeline = sources.load(source, torch.float32)
    name = probe(pipeline)
    linear = pipeline.transformer.get_submodule(name)
    seen = collect({name: linear}, partial(run_prompts, pipeline, calibration[:1], settings={"steps": STEPS}))[name]
    panels = {"4 bits": layers["lrq-w4a8"], "3 bits": layers["lrq-w3a8"]}
    return plot_layer(name, linear.weight.detach(), panels, seen.sample)


def probe(pipeline) -> str:
    """Name the layer that is plotted: the last feed-forward product of the middle block."""
    return f"transformer_blocks.{len(pipeline.transformer.transformer_blocks) // 2}.ff.net.2"


def plot_layer(name: str, weight: Tensor, layers: dict[str, QuantLinear], inputs: Tensor) -> list[Plot]:
    """Plot a row of weights against its code books, and the inputs before and after the transforms."""
    from ditquant.evaluation import drawn, plot_activation_outliers, plot_codebook
    from ditquant.formats.twin_log import codebook

    panels = {}
    for label, layer in layers.items():
        transformed = weight
        for transform in layer.transforms:
            transformed = transform.absorb(transformed)  # type: ignore[operator]
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
    import torch

    from ditquant import sources
    from ditquant.cli.facts import describe
    from ditquant.evaluation import Sampling, compare, results_table, shapes, write_comparison

    paths = {recipe: str(folder / "models" / recipe) for recipe in RECIPES}
    results = compare(
        partial(sources.load_pipeline, MODEL, torch.float32),
        {recipe: partial(sources.load_pipeline, path, torch.float32) for recipe, path in paths.items()},
        shapes.prompts(count, seed=2),
        FIRST_SEED,
        sampling=Sampling(steps=STEPS, batch_size=BATCH),
        reference_name=MODEL,
        describe=lambda name, pipeline: describe(paths.get(name, MODEL), pipeline),
    )
    write_comparison(results, folder / "report", title=f"{MODEL}, quantized", plots=plots)
    for path in (folder / "report").iterdir():
        path.rename(folder / path.name)
    (folder / "report").rmdir()
    return results_table(results)
