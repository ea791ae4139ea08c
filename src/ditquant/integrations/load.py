"""Build a plan's layers in an empty model, and check what a checkpoint put into them: it is untrusted input."""

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from ditquant.errors import DitQuantError, damaged
from ditquant.models import family_of, walk_blocks
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
    """Check every quantized layer's tensors; offloaded ones are fetched for it, one layer at a time.

    Raises:
        DitQuantError: a tensor is missing, has another shape or dtype, or holds values that no layer can have.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            with ExitStack() as stack:
                for part in module.modules():
                    stack.enter_context(align_module_device(part))
                module.check(name)


def word_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the dtypes of the parameters that hold words."""
    return {name: p.dtype for name, p in model.named_parameters() if not p.is_floating_point()}


def check_words(expected: Mapping[str, torch.dtype], state_dict: Mapping[str, Tensor]) -> None:
    """Refuse words that are stored in another dtype: diffusers would cast them.

    Raises:
        DitQuantError: names the tensor.
    """
    for name in expected.keys() & state_dict.keys():
        if state_dict[name].dtype != expected[name]:
            raise damaged(f"{name} should be {expected[name]}, found {state_dict[name].dtype}")


def keep_blocks_whole(model: nn.Module) -> None:
    """Let `device_map="auto"` work for models that do not say which modules must not be split: their blocks."""
    if getattr(model, "_no_split_modules", None) is None:
        model._no_split_modules = sorted({type(block).__name__ for _, block in walk_blocks(model, family_of(model))})
