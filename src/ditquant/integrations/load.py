"""Build a plan's layers in an empty model, and check what a checkpoint put into them: it is untrusted input."""

import torch
from torch import nn

from ditquant.errors import DitQuantError, damaged
from ditquant.nn import QuantLinear, set_module
from ditquant.specs import QuantPlan


def build_layers(model: nn.Module, plan: QuantPlan, dtype: torch.dtype | None) -> None:
    """Replace the plan's layers of a model by empty ones on the meta device.

    Raises:
        DitQuantError: a layer that the model does not have, is not linear, or whose width does not fit the plan.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    replaced: dict[nn.Module, QuantLinear] = {}
    for name, layer in plan.layers.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear) or isinstance(linear, QuantLinear):
            raise damaged(f"the plan names {name!r}, which is no linear layer of {type(model).__name__}")
        try:
            replaced[linear] = QuantLinear(
                linear.in_features, linear.out_features, linear.bias is not None, layer, "meta", dtype
            )
        except DitQuantError as error:
            raise DitQuantError(f"{name}: {error}") from None
    for name, module in modules.items():
        if module in replaced:
            set_module(model, name, replaced[module])


def check_layers(model: nn.Module) -> None:
    """Check every quantized layer's tensors.

    Raises:
        DitQuantError: a tensor is missing, has another shape or dtype, or holds values that no layer can have.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            module.check(name)
