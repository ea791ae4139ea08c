"""`ditquant compare`: the same prompts and seeds through full precision and quantized models."""

import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ditquant.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Guidance,
    Overwrite,
    Seed,
    Steps,
    check_output,
    pick_device,
    pick_dtype,
    read_prompts,
)
from ditquant.cli.show import show
from ditquant.errors import DitQuantError


def compare(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="The full-precision model.")],
    models: Annotated[list[str], typer.Argument(metavar="MODELS...", help="One or more models to compare with it.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="A text file with one prompt a line.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")],
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 4,
    dtype: Dtype = "auto",
    device: Device = "auto",
    require: Annotated[
        list[str] | None,
        typer.Option(help="A threshold such as 'step_sqnr_db>=20'; may be given several times."),
    ] = None,
    add: Annotated[
        list[Path] | None, typer.Option(help="The results.json of an earlier comparison, whose models join the tables.")
    ] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS weights, safetensors.")] = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP model, for CLIPScore.")] = None,
    inception: Annotated[Path | None, typer.Option(help="Inception weights for FID and KID, safetensors.")] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of real pictures that FID and KID are taken to.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Generate with REFERENCE and MODELS, and write numbers, pictures and one HTML page.

    A model that misses a threshold, of --require or of the recipe that it was made by, makes the exit code 1.
    """
    texts = read_prompts(prompts)
    device = pick_device(device)
    kind = pick_dtype(dtype, device)

    from ditquant import distributed, sources
    from ditquant.cli.facts import describe, stored_thresholds
    from ditquant.evaluation import (
        ModelFacts,
        ModelResult,
        Results,
        Sampling,
        differences_table,
        results_table,
        write_comparison,
    )
    from ditquant.evaluation import compare as run
    from ditquant.evaluation.conditions import Conditions
    from ditquant.evaluation.generate import prompt_seeds
    from ditquant.evaluation.joining import check_references, check_runs
    from ditquant.evaluation.metrics.distributions import check_real
    from ditquant.evaluation.networks import Networks
    from ditquant.evaluation.verdict import check_samples, verdict
    from ditquant.threshold import Threshold, overridden

    earlier = [Results.load(path) for path in add or ()]
    sampling = Sampling(steps=steps, guidance=guidance, batch_size=batch_size)
    names = [reference, *models]
    planned = Results(
        *(texts, prompt_seeds(seed, len(texts)), asdict(sampling)),
        [ModelResult(name, ModelFacts(), 0.0) for name in names],
        conditions=Conditions(str(kind).removeprefix("torch.")),
    )
    check_runs(planned, earlier)  # what does not fit is refused before anything is loaded, and painted
    asked = [Threshold.parse(text) for text in require or ()]
    check_samples(asked, len(texts))
    found = [sources.find(name) for name in names]
    if len({source.name if source.folder is None else os.path.abspath(source.folder) for source in found}) < len(names):
        raise DitQuantError(f"a model is given twice: {', '.join(names)}. Give every model once.")
    for source in found:
        sources.check_pipeline(source)
    for source in found[1:]:
        check_samples(overridden(stored_thresholds(source), asked), len(texts))
    check_output(output, overwrite, prompts, *(source.folder for source in found))
    networks = Networks.find(lpips, clip, inception, real)
    if real is not None:
        # with fewer than KID needs, real pictures are good for nothing
        check_real(["kid_real"], len(networks.real))
        for source in found[1:]:
            check_samples(overridden(stored_thresholds(source), asked), len(texts), len(networks.real))
    results = run(
        partial(sources.load_pipeline, reference, kind, device),
        {name: partial(sources.load_pipeline, name, kind, device) for name in models},
        texts,
        seed,
        sampling=sampling,
        reference_name=reference,
        describe=describe,
        networks=networks,
        check=lambda found: check_references(replace(planned, conditions=found), earlier),
    )
    results = results.joined(earlier)
    go, lines = distributed.from_main(verdict(results, asked) if distributed.is_main() else (False, []))
    if not distributed.is_main():
        raise typer.Exit(0 if go else 1)
    results.verdict = lines
    write_comparison(results, output, overwrite=overwrite)
    show(results_table(results))
    if (paired := differences_table(results)).rows:
        print(f"{paired.title}, with 95 % intervals:")
        show(paired)
    for note in results.notes:
        print(note)
    print(f"report in {output / 'report.html'}")
    if lines:
        print("\n".join(lines))
        raise typer.Exit(0 if go else 1)
