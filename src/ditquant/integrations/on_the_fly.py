"""Quantize weights while `from_pretrained` reads them: data-free, one layer in full precision at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ditquant.engine import match, quantize_layer
from ditquant.nn import QuantLinear, set_module
from ditquant.recipe import Recipe, Rule
from ditquant.specs import QuantPlan


class OnTheFly:
    """The layers of a model (still on the meta device) that a recipe will quantize."""

    def __init__(self, model: nn.Module, recipe: str | Mapping[str, Any], keep: Sequence[str]):
        self.recipe = Recipe.load(recipe)
        kept = [Rule(pattern, None) for pattern in keep]
        self.rules = {
            layer.name: (layer, rule)
            for layer, rule in match(model, self.recipe)
            if not any(pattern.matches(layer.role, layer.name) for pattern in kept)
        }
        self.plan: dict[str, Any] = {}

    def wants(self, param_name: str) -> bool:
        """Say whether a tensor is the weight of one of the layers."""
        name, _, kind = param_name.rpartition(".")
        return kind == "weight" and name in self.rules

    def quantize(
        self, model: nn.Module, param_name: str, weight: Tensor, device: Any, dtype: torch.dtype | None
    ) -> None:
        """Put the quantized layer in the place of the empty one; its bias may have arrived before or come later."""
        name = param_name.removesuffix(".weight")
        layer, rule = self.rules[name]
        linear = model.get_submodule(name)
        linear.weight = nn.Parameter(weight.to(device, dtype or weight.dtype), requires_grad=False)
        new = quantize_layer(linear, layer, rule, {})
        self.plan[name] = new.plan
        for alias in (name, *layer.aliases):
            set_module(model, alias, new)

    def finish(self, model: nn.Module) -> QuantPlan:
        """Return the plan of what was quantized, in the model's order."""
        order = [name for name, m in model.named_modules() if isinstance(m, QuantLinear)]
        return QuantPlan({name: self.plan[name] for name in order}, self.recipe.name)
