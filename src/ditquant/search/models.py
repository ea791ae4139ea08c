"""The transformers that are searched together, under one root: some pipelines have two that take turns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ditquant.engine import check_rule, match
from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import mark_quantized, transformers_of
from ditquant.models import Layer, find_linears
from ditquant.recipe import Recipe
from ditquant.rule import Rule
from ditquant.specs import QuantPlan


@dataclass(frozen=True)
class Models:
    """Transformers by component name; where there are several, layers' names start with the component's."""

    parts: Mapping[str, nn.Module]
    root: nn.Module

    @staticmethod
    def of(pipeline: Any) -> "Models":
        """Find the transformers of a pipeline."""
        return Models.under(transformers_of(pipeline))

    @staticmethod
    def under(parts: Mapping[str, nn.Module]) -> "Models":
        """Put transformers under one root; a single one is the root itself."""
        if len(parts) == 1:
            return Models({"": next(iter(parts.values()))}, next(iter(parts.values())))
        return Models(parts, nn.ModuleDict(parts))

    def match(self, recipe: Recipe) -> list[tuple[Layer, Rule]]:
        """Pair the layers that a recipe quantizes with their rules.

        Raises:
            DitQuantError: as of the engine, for each transformer.
        """
        return [(_inside(p, layer), rule) for p, model in self.parts.items() for layer, rule in match(model, recipe)]

    def named(self, rules: Iterable[Rule]) -> list[tuple[Layer, Rule]]:
        """Pair rules whose targets are the names of layers with these, in the order of the model.

        Raises:
            DitQuantError: a layer that is not there, or that a rule does not fit.
        """
        left = {rule.target: rule for rule in rules}
        pairs = []
        for part, model in self.parts.items():
            for layer in find_linears(model).layers:
                found = _inside(part, layer)
                if rule := left.pop(found.name, None):
                    check_rule(rule, found)
                    pairs.append((found, rule))
        if left:
            raise DitQuantError(f"the plan has a layer {next(iter(left))!r}, the model has none. Give its own model.")
        return pairs

    def part_of(self, name: str) -> str:
        """Return the transformer that a layer belongs to."""
        return name.split(".")[0] if len(self.parts) > 1 else ""

    def mark(self, plan: QuantPlan) -> None:
        """Tell every transformer what its layers have become."""
        for part, model in self.parts.items():
            head = f"{part}." if part else ""
            own = {name.removeprefix(head): entry for name, entry in plan.layers.items() if name.startswith(head)}
            mark_quantized(model, replace(plan, layers=own))


def _inside(part: str, layer: Layer) -> Layer:
    """Return a layer with the name that it has under the root."""
    if not part:
        return layer
    return replace(layer, name=f"{part}.{layer.name}", aliases=tuple(f"{part}.{name}" for name in layer.aliases))
