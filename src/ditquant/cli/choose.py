"""`ditquant quantize --recipe auto --bits 3.5`: a recipe that spends a budget where it lowers the error most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ditquant.cli.show import console, printed
from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ditquant.auto import Point
    from ditquant.recipe import Recipe

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
