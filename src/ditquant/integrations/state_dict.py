"""The state dict of a quantized model knows its model: a quantizer that saves needs it, and LoRA loaders do."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ditquant.nn import QuantLinear
from ditquant.specs import QuantPlan


class StateDict(OrderedDict):
    """Answers for the `weight` of a quantized layer, which is not stored: FluxPipeline looks there for its shape."""

    model: nn.Module

    def __missing__(self, key: str) -> Any:
        name, _, kind = key.rpartition(".")
        layer = dict(self.model.named_modules()).get(name)
        layer = getattr(layer, "base_layer", layer)  # a LoRA wraps it
        if kind != "weight" or not isinstance(layer, QuantLinear):
            raise KeyError(key)
        return layer.weight

    def __reduce__(self) -> Any:
        """Copy and pickle as the plain dictionary that torch would have given."""
        plain = OrderedDict(self)
        plain._metadata = self._metadata
        return plain.__reduce__()


def know_model(module: nn.Module, state_dict: OrderedDict, prefix: str, local_metadata: dict) -> StateDict | None:
    """Hook of `state_dict()` on the outermost module."""
    if prefix:
        return None
    known = StateDict(state_dict)
    known.model, known._metadata = module, state_dict._metadata
    return known


def stumbling_block(plan: QuantPlan) -> dict[str, Tensor]:
    """Return an empty tensor in the place of a full-precision weight, to be saved with a quantized model.

    If config.json lost its quantization_config, diffusers would load an ordinary model and leave the weights that it
    does not find without values; at this one it stops.
    """
    return {f"{min(plan.layers)}.weight": torch.empty(0, dtype=torch.uint8)} if plan.layers else {}


def hook(model: nn.Module) -> None:
    """Let a model's `state_dict()` return a StateDict."""
    if know_model not in model._state_dict_hooks.values():
        model._register_state_dict_hook(know_model)


def unhook(model: nn.Module) -> None:
    """Let it return what torch gives again."""
    for key in [key for key, value in model._state_dict_hooks.items() if value is know_model]:
        del model._state_dict_hooks[key]
