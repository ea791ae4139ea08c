"""The genes of a search: what may differ from layer to layer.

`groups`: one size for the weight and the activation together; one that equals the width of a layer is the full row, one
scale a row and one a token. `bits` of the weights, `rotation` of the input channels and `format` of the weights are
searched where they are asked for, and are the recipe's otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ditquant.errors import DitQuantError
from ditquant.fitting import PLAIN
from ditquant.models import Layer
from ditquant.quantizers import NEEDS_GRAM
from ditquant.registry import unknown
from ditquant.rule import Rule
from ditquant.specs import TransformSpec, WeightSpec

GROUPS = (32, 48, 64, 96, 128, 192, 288, 384)
BITS = (3, 4, 5, 6, 8)
ROTATIONS = ("none", "hadamard", "smooth+hadamard")
ASPECTS = ("groups", "bits", "rotation", "format")
FULL_ROW = "full row"


@dataclass(frozen=True)
class Gene:
    """What is decided for a layer."""

    groups: int
    bits: int
    rotation: str
    format: str


Genome = Mapping[str, Gene]


@dataclass(frozen=True)
class Space:
    """The layers that are searched, with their rules and what each of their aspects may be, by name.

    `fixed` are those that the recipe quantizes as it stands: their inputs stay in floating point.
    """

    searched: Mapping[str, tuple[Layer, Rule]]
    fixed: Mapping[str, tuple[Layer, Rule]]
    choices: Mapping[str, Mapping[str, tuple]]

    @staticmethod
    def of(
        matched: Sequence[tuple[Layer, Rule]], groups: Sequence[int] | None = None, genes: Sequence[str] = ("groups",)
    ) -> "Space":
        """Make the space of the layers whose weight and activation are both quantized.

        Without `groups` those of GROUPS that divide a layer's width.

        Raises:
            DitQuantError: a recipe without such layers, a group size that divides the width of none of them, a gene
                that there is not.
        """
        searched = {layer.name: (layer, rule) for layer, rule in matched if rule.activation is not None}
        if not searched:
            raise DitQuantError("the recipe quantizes no activation: there is nothing to group. Choose qdit-w4a8.")
        for gene in genes:
            if gene not in ASPECTS:
                raise unknown("gene", gene, ASPECTS)
        _check_groups(groups or (), [layer for layer, _ in searched.values()])
        choices = {name: _offers(layer, rule, groups or GROUPS, genes) for name, (layer, rule) in searched.items()}
        fixed = {layer.name: (layer, rule) for layer, rule in matched if layer.name not in searched}
        return Space(searched, fixed, choices)

    def uniform(self, group: int | None) -> Genome | None:
        """Return the genome of one group size everywhere, of full rows for None; None where it does not divide."""
        genome = {}
        for name, (layer, _) in self.searched.items():
            size = group or layer.in_features
            if size not in self.choices[name]["groups"]:
                return None
            genome[name] = replace(self.own(name), groups=size)
        return genome

    def uniforms(self) -> dict[str, Genome]:
        """Return the genomes of one group size everywhere, by a label: `g = 64`, `full row`."""
        sizes = sorted({size for offered in self.choices.values() for size in offered["groups"]})
        found = {f"g = {size}": self.uniform(size) for size in sizes} | {FULL_ROW: self.uniform(None)}
        return {label: genome for label, genome in found.items() if genome is not None}

    def offers(self, name: str) -> list[Gene]:
        """Return every gene that a layer may have."""
        found: list[dict[str, Any]] = [asdict(self.own(name))]
        for aspect, values in self.choices[name].items():
            found = [one | {aspect: value} for one in found for value in values]
        return [Gene(**one) for one in found]

    def own(self, name: str) -> Gene:
        """Return a layer's gene of full rows as the recipe has it."""
        layer, rule = self.searched[name]
        return Gene(layer.in_features, rule.weight.bits, _rotation(rule), rule.weight.format)

    def suggest(self, trial: Any) -> Genome:
        """Draw a genome in a trial of Optuna."""
        found = {key: trial.suggest_categorical(key, values) for key, values in self.parameters().items()}
        return self.genome(found)

    def parameters(self) -> dict[str, tuple]:
        """Return what a trial draws, and from what; `name` is a layer's group size, `name bits` its bits."""
        return {
            _key(name, aspect): values for name, offered in self.choices.items() for aspect, values in offered.items()
        }

    def genome(self, found: Mapping[str, Any]) -> Genome:
        """Read the values that a trial has drawn."""
        return {
            name: replace(self.own(name), **{a: found[_key(name, a)] for a in offered})
            for name, offered in self.choices.items()
        }

    def drawn(self, genome: Genome) -> dict[str, Any]:
        """Return the values that a trial draws to have a genome."""
        return {
            _key(name, aspect): getattr(genome[name], aspect)
            for name, offered in self.choices.items()
            for aspect in offered
        }

    def rule(self, name: str, gene: Gene) -> Rule:
        """Return a searched layer's rule with a gene."""
        rule = self.searched[name][1]
        own = rule.weight.format == gene.format
        weight = WeightSpec(gene.bits, gene.format, gene.groups, gene.format != "affine")
        if own:
            weight = replace(rule.weight, bits=gene.bits, group_size=gene.groups)
        else:
            kept = rule.quantizer if rule.quantizer in NEEDS_GRAM else PLAIN[gene.format]
            rule = replace(rule, quantizer=kept, quantizer_options={})
        if gene.rotation != _rotation(rule):
            kinds = [] if gene.rotation == "none" else gene.rotation.split("+")
            rule = replace(rule, transforms=tuple(TransformSpec(kind) for kind in kinds))
        activation = replace(rule.activation, granularity="group", group_size=gene.groups)
        return replace(rule, target=name, weight=weight, activation=activation)

    def rules(self, genome: Genome) -> dict[str, Rule]:
        """Return the rule of every layer that is quantized."""
        fixed = {name: replace(rule, target=name) for name, (_, rule) in self.fixed.items()}
        return fixed | {name: self.rule(name, gene) for name, gene in genome.items()}


def _offers(layer: Layer, rule: Rule, groups: Sequence[int], genes: Sequence[str]) -> dict[str, tuple]:
    width = layer.in_features
    every = {
        "groups": tuple(sorted({group for group in groups if width % group == 0} | {width})),
        "bits": tuple(sorted({*BITS, rule.weight.bits})),
        "rotation": tuple(dict.fromkeys((_rotation(rule), *ROTATIONS))),
        "format": tuple(dict.fromkeys((rule.weight.format, *PLAIN))),
    }
    return {aspect: every[aspect] for aspect in ASPECTS if aspect in genes} | (
        {} if "groups" in genes else {"groups": (rule.activation.group_size or width,)}
    )


def _rotation(rule: Rule) -> str:
    return "+".join(transform.kind for transform in rule.transforms) or "none"


def _key(name: str, aspect: str) -> str:
    return name if aspect == "groups" else f"{name} {aspect}"


def _check_groups(groups: Sequence[int], layers: Sequence[Layer]) -> None:
    widths = sorted({layer.in_features for layer in layers})
    for group in groups:
        if type(group) is not int or group < 1:
            raise DitQuantError(f"group size {group!r} is not allowed. Choose a positive integer.")
        if all(width % group for width in widths):
            divisors = "; ".join(f"of {w}: {', '.join(str(d) for d in range(8, w + 1) if w % d == 0)}" for w in widths)
            raise DitQuantError(f"group size {group} divides no layer's width. Divisors {divisors}.")
