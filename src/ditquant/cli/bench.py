"""`ditquant bench`: latency, memory and size of quantized models beside full precision and other packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditquant.atomic import check_file
from ditquant.cli.options import BatchSize, Device, Dtype, Overwrite, pick_device, pick_dtype
from ditquant.errors import DitQuantError
from ditquant.registry import unknown

if TYPE_CHECKING:
    import torch

    from ditquant.bench import Subject


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A pipeline: shipped, a local folder or on the hub.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="A real shape with random weights instead: pixart-xl, ...")] = None,
    blocks: Annotated[int | None, typer.Option(help="Blocks of the shape; all by default.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of image or video; the shape's own by default.")] = None,
    batch: BatchSize = 1,
    recipes: Annotated[str, typer.Option(help="Recipes, with commas between them.")] = "lrq-w4a8,lrq-w3a8",
    modes: Annotated[str, typer.Option(help="memory, speed or both.")] = "memory,speed",
    peers: Annotated[bool, typer.Option(help="Measure other packages that are installed.")] = True,
    sdnq_python: Annotated[Path | None, typer.Option(help="The python of an environment that has SDNQ.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Every contestant runs once a round.")] = 5,
    parts: Annotated[bool, typer.Option(help="Also measure operator by operator.")] = True,
    load: Annotated[bool, typer.Option("--load", help="Also load every model in a new process.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Also compile full precision and ours by torch.")] = False,
    dtype: Dtype = "bfloat16",
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file of all figures.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure MODEL, or a real shape with random weights, in full precision and quantized, in turns.

    Shapes: dit-xl, pixart-xl, sd3-medium, flux-dev, cogvideox-5b, wan-14b. Medians of the rounds, and the median of the
    ratios of one round; nothing is printed for an operator or a model whose result is wrong.
    """
    chosen, ways = split_recipes(recipes), split_modes(modes)
    if (model is None) == (shape is None):
        raise DitQuantError("give either MODEL or --shape: one of them is measured.")
    if model is not None and (blocks is not None or tokens is not None):
        raise DitQuantError("--blocks and --tokens are for --shape: a pipeline has its own. Leave them out.")
    if sdnq_python is not None:
        from ditquant.bench.elsewhere import check_python

        check_python(sdnq_python)
    if output is not None:
        check_file(output, overwrite)
    device = pick_device(device)
    compute = pick_dtype(dtype, device)
    subject = shaped(shape, blocks, tokens, batch, compute, device) if shape else loaded(model, batch, compute, device)

    from ditquant.atomic import atomic_file
    from ditquant.bench import measure
    from ditquant.bench.contestants import is_quantized
    from ditquant.cli.bench_tables import show_found

    wanted = [None] if is_quantized(subject.model) else chosen
    found = measure(subject, wanted, ways, rounds, peers, sdnq_python, parts, load, compile, say)
    show_found(found)
    if output is not None:
        with atomic_file(output, overwrite) as file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"written to {output}")


def split_recipes(text: str) -> list[str]:
    """Return the names of recipes that exist; raises DitQuantError for others and for none."""
    from ditquant.recipe import Recipe

    names = split(text, "recipe")
    for name in names:
        Recipe.load(name)
    return names


def split_modes(text: str) -> tuple[str, ...]:
    """Return the modes; raises DitQuantError for others and for none."""
    from ditquant.nn.mode import MODES

    names = split(text, "mode")
    for name in names:
        if name not in MODES:
            raise unknown("mode", name, MODES)
    return tuple(names)


def split(text: str, what: str) -> list[str]:
    """Split at commas, each name once."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise DitQuantError(f"--{what}s {text!r} names no {what}. Give one or more, with commas between them.")
    return list(dict.fromkeys(names))


def shaped(shape: str, blocks: int | None, tokens: int | None, batch: int, dtype: torch.dtype, device: str) -> Subject:
    """Build a shape."""
    from ditquant.bench import shape_subject

    return shape_subject(shape, blocks, tokens, batch, dtype, device)


def loaded(model: Any, batch: int, dtype: torch.dtype, device: str) -> Subject:
    """Load a pipeline and see what its transformer is called with."""
    import torch

    from ditquant import sources
    from ditquant.bench.subject import pipeline_subject

    source = sources.find(model)
    sources.check_pipeline(source)
    with torch.no_grad():
        return pipeline_subject(sources.load(source, dtype, device), model, batch, device)


def say(line: str) -> None:
    """Tell on standard error what is being done."""
    typer.echo(line, err=True)
