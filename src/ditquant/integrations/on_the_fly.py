"""Quantize weights while `from_pretrained` reads them: data-free, one layer in full precision at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ditquant.engine import match, quantize_layer
from ditquant.errors import DitQuantError
from ditquant.finite import check_finite
from ditquant.models import find_linears
from ditquant.nn import QuantLinear, set_module
from ditquant.recipe import Recipe, Rule
from ditquant.specs import LayerPlan, QuantPlan


class OnTheFly:
    """The layers of a model (still on the meta device) that a recipe will quantize."""

    def __init__(self, model: nn.Module, recipe: str | Mapping[str, Any], keep: Sequence[str]):
        self.recipe = Recipe.load(recipe)
        kept = [rule for rule in (Rule(pattern, None) for pattern in keep) if not _keeps_itself(rule, model)]
        rules = match(model, replace(self.recipe, rules=(*kept, *self.recipe.rules)))
        self.rules = {layer.name: (layer, rule) for layer, rule in rules}
        self.plan: dict[str, LayerPlan] = {}

    def wants(self, param_name: str) -> bool:
        """Say whether a tensor is the weight of one of the layers."""
        name, _, kind = param_name.rpartition(".")
        return kind == "weight" and name in self.rules

    def quantize(self, model: nn.Module, param_name: str, weight: Tensor, device: Any) -> None:
        """Put the quantized layer in the place of the empty one; its bias may have arrived before or come later."""
        name = param_name.removesuffix(".weight")
        layer, rule = self.rules[name]
        linear = model.get_submodule(name)
        linear.weight = nn.Parameter(weight.to(device), requires_grad=False)
        new = quantize_layer(linear, layer, rule, {})
        self.plan[name] = new.plan
        for alias in (name, *layer.aliases):
            set_module(model, alias, new)

    def finish(self, model: nn.Module) -> QuantPlan:
        """Return the plan of what was quantized, in the model's order.

        Raises:
            DitQuantError: the checkpoint has no weight for one of the layers, or NaN or infinite values beside them.
        """
        for name in self.rules:
            if name not in self.plan:
                raise DitQuantError(f"the checkpoint has no weight for layer {name!r}. Load one that fits the model.")
        check_finite(model, model.state_dict().items())
        order = [name for name, m in model.named_modules() if isinstance(m, QuantLinear)]
        layers = {name: self.plan[name] for name in order}
        return QuantPlan(layers, self.recipe.name, thresholds=self.recipe.thresholds)


def _keeps_itself(rule: Rule, model: nn.Module) -> bool:
    """Say whether a rule names only modules that are never quantized, such as a final projection."""
    found = find_linears(model)
    quantizable = any(rule.matches(layer.role, layer.name) for layer in found.layers)
    return not quantizable and any(rule.matches("", module.name) for module in found.skipped)
