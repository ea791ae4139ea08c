"""`ditquant compare`: the same prompts and seeds through full precision and quantized models."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ditquant import sources
from ditquant.atomic import check_free
from ditquant.cli.facts import describe
from ditquant.cli.options import Device, Dtype, Guidance, Overwrite, Seed, Steps, pick_device, pick_dtype, read_prompts
from ditquant.cli.show import show
from ditquant.evaluation import Sampling, results_table, write_comparison
from ditquant.evaluation import compare as run


def compare(
    reference: Annotated[str, typer.Argument(help="The full-precision model.")],
    models: Annotated[list[str], typer.Argument(help="One or more models to compare with it.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="A text file with one prompt a line.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")],
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 4,
    dtype: Dtype = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Generate with REFERENCE and MODELS, and write numbers, pictures and one HTML page."""
    check_free(output, overwrite)
    texts = read_prompts(prompts)
    device = pick_device(device)
    kind = pick_dtype(dtype, device)
    for name in (reference, *models):
        sources.find(name)
    results = run(
        partial(sources.load_pipeline, reference, kind, device),
        {name: partial(sources.load_pipeline, name, kind, device) for name in models},
        texts,
        seed,
        sampling=Sampling(steps=steps, guidance=guidance, batch_size=batch_size),
        reference_name=reference,
        describe=describe,
    )
    write_comparison(results, output, overwrite=overwrite)
    show(results_table(results))
    print(f"report in {output / 'report.html'}")
