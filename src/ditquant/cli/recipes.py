"""`ditquant recipes`: what can be asked for."""

from rich.console import Console
from rich.table import Table

from ditquant.recipe import Recipe, list_recipes


def recipes() -> None:
    """List the recipes that come with the package."""
    table = Table("recipe", "weights", "activations", "what it does")
    for name in list_recipes():
        recipe = Recipe.load(name)
        rule = recipe.rules[-1]
        weight = "-" if rule.weight is None else f"{rule.weight.bits} bits, {rule.weight.format}"
        activation = "floating point" if rule.activation is None else f"{rule.activation.bits} bits"
        table.add_row(name, weight, activation, recipe.description)
    Console().print(table)
