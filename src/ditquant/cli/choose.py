"""Which recipe `ditquant quantize` begins with: a named one, one that spends a budget of bits, one with attention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ditquant.cli.show import console, printed
from ditquant.errors import DitQuantError
from ditquant.registry import unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ditquant.auto import Point
    from ditquant.recipe import Recipe
    from ditquant.sources import Source

AUTO = "auto"
SHOWN = 12  # points of the front


def first_recipe(recipe: str, bits: float | None, prompts: Sequence[Any] | None) -> Recipe:
    """Return the recipe of a name; for "auto" the one it starts from.

    Raises:
        DitQuantError: a budget without "auto", or "auto" without a budget or prompts.
    """
    from ditquant.recipe import Recipe

    if recipe != AUTO:
        if bits is not None:
            raise DitQuantError(f"--bits is the budget of --recipe auto, not of {recipe!r}. Leave one of them out.")
        return Recipe.load(recipe)
    from ditquant.auto import BASE

    if bits is None or prompts is None:
        raise DitQuantError("--recipe auto needs a budget and calibration. Give --bits, such as 4, and --prompts.")
    return Recipe.load(BASE)


def spend(pipeline: Any, bits: float, prompts: Sequence[Any], seed: int, settings: Mapping[str, Any]) -> Recipe:
    """Choose the bits of every layer, and print the front of what any budget would bring."""
    from ditquant.auto import choose

    found = choose(pipeline, bits, prompts=prompts, seed=seed, settings=settings)
    table = printed("bits a weight, all-in", "error, dB", right=("bits a weight, all-in", "error, dB"))
    for point in thinned(found.front, found.chosen):
        mark = "  <-" if point == found.chosen else ""
        table.add_row(f"{point.bits:.2f}", f"{point.noise_db:+.1f}{mark}")
    out = console()
    out.print(table)
    out.print("0 dB: all layers at 4 bits. <- is chosen.")
    return found.recipe


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


def with_attention(recipe: str | None, wanted: Any, bits: float | None, prompts: list[str] | None) -> Recipe:
    """Return the recipe to begin with; one of attention alone if nothing else was named."""
    from ditquant.recipe import Recipe

    if wanted is None:
        return first_recipe("lrq-w4a8" if recipe is None else recipe, bits, prompts)
    if recipe is None and bits is None:
        return Recipe(wanted.name, (), attention=wanted)
    if recipe in (None, "auto"):
        raise DitQuantError("--attention goes with a recipe of its own, not with auto. Name one, or leave --bits out.")
    named = first_recipe(recipe, bits, prompts)
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
