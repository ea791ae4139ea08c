"""`ditquant inspect`: what a recipe would do to a model, before anything is loaded or run."""

from collections import Counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from ditquant import sources
from ditquant.cli.options import Model
from ditquant.engine import match
from ditquant.errors import DitQuantError
from ditquant.integrations.load import build_layers
from ditquant.models import Coverage, find_linears
from ditquant.recipe import Recipe, list_recipes
from ditquant.sizes import foresee, measure
from ditquant.specs import QuantPlan


def inspect(
    model: Model,
    recipe: Annotated[str | None, typer.Option(help="Show one recipe only: a name or a YAML file.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
) -> None:
    """Show what would be quantized in MODEL, what is skipped and why, and the size per recipe."""
    source = sources.find(model)
    console = Console()
    for name, config in source.transformers().items():
        part = sources.skeleton(config, model)
        stored = config.get("quantization_config")
        if stored is not None:
            _show_quantized(console, part, stored, name or source.class_name)
            continue
        coverage = find_linears(part)
        _show_coverage(console, coverage, name or source.class_name, part, layers)
        _show_sizes(console, part, [recipe] if recipe else list_recipes())


def _show_coverage(console: Console, coverage: Coverage, name: str, part: nn.Module, every: bool) -> None:
    total = sum(p.numel() for p in part.parameters())
    covered = sum(layer.parameters for layer in coverage.layers)
    console.print(
        f"[bold]{name}[/bold]: {type(part).__name__}, {total / 1e6:.1f} million parameters, family {coverage.family}, "
        f"blocks in {', '.join(coverage.blocks) or 'none found'}"
    )
    console.print(
        f"{len(coverage.layers)} linear layers can be quantized, {100 * covered / total:.1f} % of the parameters"
    )
    if every:
        table = Table("layer", "role", "in", "out")
        for layer in coverage.layers:
            table.add_row(layer.name, layer.role, str(layer.in_features), str(layer.out_features))
    else:
        table = Table("role", "layers", "parameters")
        for role, count in Counter(layer.role for layer in coverage.layers).items():
            amount = sum(layer.parameters for layer in coverage.layers if layer.role == role)
            table.add_row(role, str(count), f"{amount:,}")
    console.print(table)
    skipped = Table("skipped", "kind", "parameters", "why", title="left in floating point")
    for module in coverage.skipped:
        skipped.add_row(module.name, module.kind, f"{module.parameters:,}", module.reason)
    console.print(skipped)


def _show_sizes(console: Console, part: nn.Module, names: list[str]) -> None:
    table = Table("recipe", "layers", "bits a weight", "MB", "of 16 bits", title="foreseen sizes")
    full = 2 * sum(p.numel() for p in part.parameters())
    table.add_row("16 bits", "", "16.00", f"{full / 1e6:.1f}", "1.00")
    for name in names:
        recipe = Recipe.load(name)
        try:
            rules = match(part, recipe)
        except DitQuantError as error:
            if len(names) == 1:
                raise
            table.add_row(recipe.name, str(error), "", "", "")
            continue
        size = foresee(part, rules)
        share = size.total_bytes / full
        bits = f"{size.bits_per_weight:.2f}"
        table.add_row(recipe.name, str(len(rules)), bits, f"{size.total_bytes / 1e6:.1f}", f"{share:.2f}")
    console.print(table)


def _show_quantized(console: Console, part: nn.Module, stored: dict[str, Any], name: str) -> None:
    """Show the plan of a model that is quantized already."""
    if stored.get("quant_method") != "ditquant":
        raise DitQuantError(f"{name} is quantized by {stored.get('quant_method')!r}. Take the full-precision model.")
    plan = QuantPlan.from_dict(stored.get("plan"))
    build_layers(part, plan, None)
    size = measure(part)
    console.print(f"[bold]{name}[/bold]: {type(part).__name__}, quantized with {plan.recipe} (plan {plan.hash()})")
    table = Table("layers", "weight", "activation", "transforms")
    for entry, count in Counter(_row(layer) for layer in plan.layers.values()).items():
        table.add_row(str(count), *entry)
    console.print(table)
    console.print(f"{size.bits_per_weight:.2f} bits a weight all-in")


def _row(layer) -> tuple[str, str, str]:
    weight = f"{layer.weight.bits} bits {layer.weight.format}"
    activation = "floating point" if layer.activation is None else f"{layer.activation.bits} bits"
    return weight, activation, ", ".join(t.kind for t in layer.transforms) or "none"
