"""`ditquant inspect`: what a recipe would do to a model, before anything is loaded or run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditquant.cli.options import (
    Device,
    Dtype,
    Frames,
    Guidance,
    Model,
    Overwrite,
    Pixels,
    PromptFile,
    Steps,
    check_output,
    pick_device,
    pick_dtype,
    read_prompts,
)
from ditquant.cli.show import console, printed
from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from torch import nn

    from ditquant.models import Coverage, Skipped
    from ditquant.recipe import Recipe
    from ditquant.sources import Source


def inspect(
    model: Model,
    recipe: Annotated[str | None, typer.Option(help="Show one recipe only: a name or a YAML file.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="With --prompts: show the attention of every head, before and after.")
    ] = False,
    prompts: PromptFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Pixels = None,
    width: Pixels = None,
    frames: Frames = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the page; with --prompts.")] = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Show what would be quantized in MODEL, what is skipped and why, and the size per recipe.

    With --prompts the prompts are run: how large and heavy-tailed every layer's inputs are, the error of each format
    and rotation, which rotation each rule would choose, and where overflows and NaN begin. Steps and sizes are for it:
    few and small ones suffice for a look at a large model.

    With --attention too, they show which order of tokens suits every head, its map in tiles before and after, how much
    attention a density keeps, and how unlike the entries of a tile are.
    """
    from ditquant import sources
    from ditquant.cli.inspect_attention import examine_heads, show_heads, write_heads
    from ditquant.cli.inspect_quantized import show_quantized
    from ditquant.models import find_linears
    from ditquant.recipe import Recipe, list_recipes
    from ditquant.skeleton import skeleton

    texts = None if prompts is None else read_prompts(prompts)
    if output is not None and texts is None:
        raise DitQuantError("-o is for the page of layers that ran prompts. Give --prompts, or leave it out.")
    settings = {"steps": steps, "guidance": guidance, "height": height, "width": width, "frames": frames}
    if attention and texts is None:
        raise DitQuantError("--attention looks at what prompts make of the model. Give --prompts, or leave it out.")
    if texts is None and any(value is not None for value in settings.values()):
        raise DitQuantError("steps, guidance and sizes are for running prompts. Give --prompts, or leave them out.")
    chosen = [Recipe.load(name) for name in ([recipe] if recipe else list_recipes())]
    source = sources.find(model)
    if texts is not None:
        check_examinable(source, texts)
        device = pick_device(device)
        compute = pick_dtype(dtype, device)
    if output is not None:
        check_output(output, overwrite, source.folder, prompts)
    if attention and texts is not None:
        heads = examine_heads(source, texts, settings, compute, device)
        show_heads(heads)
        if output is not None:
            write_heads(heads, output, model, len(texts), overwrite)
            print(f"page in {output / 'report.html'}")
        return
    for name, config in source.transformers().items():
        part = skeleton(config, model)
        if config.get("quantization_config") is not None:
            show_quantized(source, name, part, config["quantization_config"], layers)
            continue
        coverage = find_linears(part)
        show_coverage(coverage, name or source.class_name, part)
        if layers:
            list_layers(coverage, part, chosen[0] if recipe else None)
        show_sizes(part, chosen)
    if texts is None:
        return
    from ditquant.cli.inspect_layers import examine_model, show_layers, write_layers

    found = examine_model(source, chosen[0] if recipe else None, texts, settings, compute, device)
    show_layers(found)
    if output is not None:
        write_layers(found, output, model, len(texts), overwrite)
        print(f"page in {output / 'report.html'}")


def check_examinable(source: Source, prompts: list[str]) -> None:
    """Refuse what the prompts cannot examine, before anything is loaded."""
    from ditquant import sources

    sources.check_calibration(source, prompts)
    if any(config.get("quantization_config") is not None for config in source.transformers().values()):
        raise DitQuantError(f"{source.name!r} is quantized already. Give the full-precision model with --prompts.")


def show_coverage(coverage: Coverage, name: str, part: nn.Module) -> None:
    """Print what can be quantized, and what stays as it is and why."""
    total = sum(p.numel() for p in part.parameters())
    covered = sum(layer.parameters for layer in coverage.layers)
    out = console()
    out.print(
        f"{name}: {type(part).__name__}, {total / 1e6:.1f} million parameters, family {coverage.family}, "
        f"blocks in {', '.join(coverage.blocks) or 'none found'}"
    )
    out.print(f"{len(coverage.layers)} linear layers can be quantized, {100 * covered / total:.1f} % of the parameters")
    table = printed("role", "layers", "parameters", right=("layers", "parameters"))
    for role, count in Counter(layer.role for layer in coverage.layers).items():
        amount = sum(layer.parameters for layer in coverage.layers if layer.role == role)
        table.add_row(role, str(count), f"{amount:,}")
    out.print(table)
    table = printed("left in floating point", "modules", "parameters", "why: which", right=("modules", "parameters"))
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for module in coverage.skipped:
        groups.setdefault((module.kind, module.reason), []).append(module)
    for (kind, reason), modules in groups.items():
        amount = sum(m.parameters for m in modules)
        names = [m.name for m in modules if m.name]
        which = f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
        table.add_row(kind, str(len(modules)), f"{amount:,}", f"{reason}{which}")
    out.print(table)


def list_layers(coverage: Coverage, part: nn.Module, recipe: Recipe | None) -> None:
    """Print every layer that can be quantized, and what a recipe would make of it."""
    from ditquant.engine import match
    from ditquant.specs import in_words

    table = printed("layer", "role", "in", "out", *(["with the recipe"] if recipe else []), right=("in", "out"))
    rules = {layer.name: rule for layer, rule in match(part, recipe)} if recipe else {}
    for layer in coverage.layers:
        rule = rules.get(layer.name)
        kept = "stays in floating point"
        formats = (
            kept
            if rule is None or rule.weight is None
            else in_words(rule.weight, rule.activation, rule.transforms, rule.rank)
        )
        row = (layer.name, layer.role, str(layer.in_features), str(layer.out_features))
        table.add_row(*row, *([formats] if recipe else []))
    console().print(table)


def show_sizes(part: nn.Module, recipes: list[Recipe]) -> None:
    """Print the foreseen size with every recipe; those that differ in activations only share a row."""
    from ditquant.engine import match
    from ditquant.sizes import foresee

    numbers = ("layers", "bits a weight, all-in", "MB", "of 16 bits")
    table = printed("recipe", *numbers, right=numbers, title="foreseen size of the transformer")
    full = 2 * sum(p.numel() for p in part.parameters())
    rows: dict[tuple[str, ...], list[str]] = {("", "16.00", f"{full / 1e6:.1f}", "100 %"): ["16 bits"]}
    refused = []
    for recipe in recipes:
        try:
            rules = match(part, recipe)
        except DitQuantError as error:
            if len(recipes) == 1:
                raise
            refused.append(f"{recipe.name}: {error}")
            continue
        size = foresee(part, rules)
        share = f"{100 * size.total_bytes / full:.0f} %"
        row = (str(len(rules)), f"{size.bits_per_weight:.2f}", f"{size.total_bytes / 1e6:.1f}", share)
        rows.setdefault((*row, recipe.name.rpartition("a")[0]), []).append(recipe.name)
    for key, names in rows.items():
        endings = [f"a{name.rpartition('a')[2]}" for name in names[1:]]
        table.add_row(", ".join([names[0], *endings]), *key[:4])
    out = console()
    out.print(table)
    for line in refused:
        out.print(line)
