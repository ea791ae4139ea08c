"""Which recipe `ditquant quantize` begins with: a named one, one that spends a budget, one with attention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ditquant.cli.show import console, printed
from ditquant.errors import DitQuantError
from ditquant.registry import unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ditquant.auto import Auto, Point
    from ditquant.recipe import Recipe
    from ditquant.sources import Source

AUTO = "auto"
SHOWN = 12  # points of the front


class Budget(NamedTuple):
    """What --recipe auto may spend: all-in bits a weight, or milliseconds of one call's layers."""

    bits: float | None = None
    latency_ms: float | None = None

    @property
    def option(self) -> str | None:
        """The option that was given; None without any."""
        return "--bits" if self.bits is not None else "--latency" if self.latency_ms is not None else None


def first_recipe(recipe: str, budget: Budget, prompts: Sequence[Any] | None) -> Recipe:
    """Return the recipe of a name; for "auto" the one it starts from.

    Raises:
        DitQuantError: a budget without "auto", or "auto" without one budget or prompts.
    """
    from ditquant.recipe import Recipe

    if recipe != AUTO:
        if budget.option:
            raise DitQuantError(
                f"{budget.option} is the budget of --recipe auto, not of {recipe!r}. Leave one of them out."
            )
        return Recipe.load(recipe)
    from ditquant.auto import BASE, check_budget

    if budget.option is None or prompts is None:
        raise DitQuantError(
            "--recipe auto needs a budget and calibration. Give --bits, such as 4, or --latency, in ms, and --prompts."
        )
    if None not in budget:
        raise DitQuantError("--bits and --latency are two budgets. Leave one of them out.")
    check_budget(*budget)
    return Recipe.load(BASE)


def spend(
    pipeline: Any,
    budget: Budget,
    prompts: Sequence[Any],
    seed: int,
    settings: Mapping[str, Any],
    work_dir: Path | None = None,
) -> Recipe:
    """Choose the bits of every layer, and print the front of what any budget would bring.

    Raises:
        DitQuantError: a budget in which nothing needs to be quantized.
    """
    from ditquant.auto import choose

    found = choose(pipeline, *budget, prompts=prompts, seed=seed, settings=settings, work_dir=work_dir)
    show_front(found, budget)
    if all(rule.weight is None for rule in found.recipe.rules):
        raise DitQuantError(
            f"within {budget.option} {budget.latency_ms or budget.bits:g} every layer can stay in floating point, "
            "which is of no error: nothing is to be quantized. Choose less."
        )
    return found.recipe


def show_front(found: Auto, budget: Budget) -> None:
    """Print some points of a front."""
    columns = [*(["ms a call"] if budget.bits is None else []), "bits a weight, all-in", "error, dB"]
    table = printed(*columns, right=tuple(columns))
    for point in thinned(found.front, found.chosen):
        mark = "  <-" if point == found.chosen else ""
        ms = [f"{point.ms:.2f}"] if budget.bits is None else []
        table.add_row(*ms, f"{point.bits:.2f}", f"{point.noise_db:+.1f}{mark}")
    out = console()
    out.print(table)
    out.print("0 dB: all layers at 4 bits. <- is chosen.")
    if budget.bits is None:
        out.print("Milliseconds are those of the layers alone, measured on this machine.")


def thinned(front: Sequence[Point], chosen: Point) -> list[Point]:
    """Return some points of a front, evenly spread, both ends and the chosen one among them."""
    last = len(front) - 1
    places = {round(i * last / (SHOWN - 1)) for i in range(SHOWN)}
    return [point for i, point in enumerate(front) if i in places or point == chosen]


def read_attention(attention: str | None, density: float | None, qk: int | None, pv: int | None) -> Any:
    """Return what is wanted of the attention; None if nothing is."""
    from ditquant.attention import AttentionSpec

    if attention is None:
        given = [name for name, value in (("density", density), ("qk", qk), ("pv", pv)) if value is not None]
        if given:
            raise DitQuantError(f"--{given[0]} is about attention. Give --attention paro, or leave it out.")
        return None
    if attention != "paro":
        raise unknown("way to attend", attention, ["paro"])
    if density is None and qk is None and pv is None:
        raise DitQuantError("--attention paro needs --density, --qk or --pv, such as --density 0.3 --qk 8 --pv 8.")
    return AttentionSpec(density, qk, pv)


def with_attention(recipe: str | None, wanted: Any, budget: Budget, prompts: list[str] | None) -> Recipe:
    """Return the recipe to begin with; one of attention alone if nothing else was named."""
    from ditquant.recipe import Recipe

    if wanted is None:
        return first_recipe("lrq-w4a8" if recipe is None else recipe, budget, prompts)
    if recipe is None and budget.option is None:
        return Recipe(wanted.name, (), attention=wanted)
    if recipe in (None, "auto"):
        option = budget.option or "--recipe auto"
        raise DitQuantError(
            f"--attention goes with a recipe of its own, not with auto. Name one, or leave {option} out."
        )
    named = first_recipe(recipe, budget, prompts)
    return replace(named, name=f"{named.name}-{wanted.name}", attention=wanted)


def check_attention(source: Source, recipe: Recipe, prompts: list[str] | None) -> None:
    """Refuse attention without prompts, or of a class of model that has no processor, before anything is loaded."""
    from ditquant.attention.kinds import kind_of
    from ditquant.skeleton import skeleton

    if recipe.attention is None or (prompts is None and recipe.rules):
        return
    if prompts is None:
        raise DitQuantError("attention is fitted to prompts. Give --prompts, a file with one prompt a line.")
    for name, config in source.transformers().items():
        kind_of(skeleton(config, name or source.name))
