"""`ditquant recipes`: what can be asked for."""

from ditquant.cli.show import console, printed


def recipes() -> None:
    """List the recipes that come with the package."""
    from ditquant.recipe import Recipe, list_recipes

    methods: dict[str, list[str]] = {}
    for name in list_recipes():
        methods.setdefault(Recipe.load(name).description, []).append(name)
    table = printed("method", "recipes")
    for description, names in methods.items():
        table.add_row(description, " ".join(names), end_section=True)
    out = console()
    out.print(table)
    out.print("w3a8: 3-bit weights, 8-bit activations; a16: activations stay in floating point.")
    out.print("A recipe of your own is a YAML file: --recipe my.yaml")
