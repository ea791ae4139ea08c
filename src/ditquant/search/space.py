"""The genes of a search: one group size a layer, for its weight and its activation together.

A gene that equals the width of a layer is the full row: one scale a row, and one a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ditquant.errors import DitQuantError
from ditquant.models import Layer
from ditquant.rule import Rule

GROUPS = (32, 48, 64, 96, 128, 192, 288, 384)
FULL_ROW = "full row"
Genome = Mapping[str, int]


@dataclass(frozen=True)
class Space:
    """The layers that are searched, with their rules and the group sizes that they may have, by name.

    `fixed` are those that the recipe quantizes as it stands: their inputs stay in floating point.
    """

    searched: Mapping[str, tuple[Layer, Rule]]
    fixed: Mapping[str, tuple[Layer, Rule]]
    choices: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(matched: Sequence[tuple[Layer, Rule]], groups: Sequence[int] | None = None) -> "Space":
        """Make the space of the layers whose weight and activation are both quantized.

        Without `groups` those of GROUPS that divide a layer's width.

        Raises:
            DitQuantError: a recipe without such layers, a group size that divides the width of none of them.
        """
        searched = {layer.name: (layer, rule) for layer, rule in matched if rule.activation is not None}
        if not searched:
            raise DitQuantError("the recipe quantizes no activation: there is nothing to group. Choose qdit-w4a8.")
        _check_groups(groups or (), [layer for layer, _ in searched.values()])
        widths = {name: layer.in_features for name, (layer, _) in searched.items()}
        choices = {
            n: tuple(sorted({g for g in groups or GROUPS if width % g == 0} | {width})) for n, width in widths.items()
        }
        fixed = {layer.name: (layer, rule) for layer, rule in matched if layer.name not in searched}
        return Space(searched, fixed, choices)

    def uniform(self, group: int | None) -> Genome | None:
        """Return the genome of one group size everywhere, of full rows for None; None where it does not divide."""
        genome = {name: group or sizes[-1] for name, sizes in self.choices.items()}
        return genome if all(gene in self.choices[name] for name, gene in genome.items()) else None

    def uniforms(self) -> dict[str, Genome]:
        """Return the genomes of one group size everywhere, by a label: `g = 64`, `full row`."""
        sizes = sorted({size for sizes in self.choices.values() for size in sizes})
        found = {f"g = {size}": self.uniform(size) for size in sizes} | {FULL_ROW: self.uniform(None)}
        return {label: genome for label, genome in found.items() if genome is not None}

    def rule(self, name: str, gene: int) -> Rule:
        """Return a searched layer's rule with a group size on both sides."""
        rule = self.searched[name][1]
        weight = replace(rule.weight, group_size=gene)
        activation = replace(rule.activation, granularity="group", group_size=gene)
        return replace(rule, target=name, weight=weight, activation=activation)

    def rules(self, genome: Genome) -> dict[str, Rule]:
        """Return the rule of every layer that is quantized."""
        fixed = {name: replace(rule, target=name) for name, (_, rule) in self.fixed.items()}
        return fixed | {name: self.rule(name, gene) for name, gene in genome.items()}


def _sizes(width: int, groups: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({group for group in groups if width % group == 0} | {width}))


def _check_groups(groups: Sequence[int], layers: Sequence[Layer]) -> None:
    widths = sorted({layer.in_features for layer in layers})
    for group in groups:
        if type(group) is not int or group < 1:
            raise DitQuantError(f"group size {group!r} is not allowed. Choose a positive integer.")
        if all(width % group for width in widths):
            divisors = "; ".join(f"of {w}: {', '.join(str(d) for d in range(8, w + 1) if w % d == 0)}" for w in widths)
            raise DitQuantError(f"group size {group} divides no layer's width. Divisors {divisors}.")
