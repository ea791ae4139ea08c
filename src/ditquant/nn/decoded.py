"""The weight of a quantized layer as others see it: decoded when its values are asked for, and read only."""

import operator
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ditquant.errors import DitQuantError

_FREE = {
    Tensor.shape.__get__,
    Tensor.dtype.__get__,
    Tensor.ndim.__get__,
    Tensor.layout.__get__,
    Tensor.requires_grad.__get__,
    Tensor.dim,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.numel,
    Tensor.size,
}
_HARMLESS = {"requires_grad_", "__index__", "__invert__"}


class DecodedWeight(Tensor):
    """Tells shape, dtype and device at no cost (PEFT asks twenty times a layer) and decodes for anything else.

    What is written to it would be lost, so that is refused.
    """

    @staticmethod
    def of(layer: nn.Linear, dtype: torch.dtype) -> "DecodedWeight":
        """Make the weight of a layer that has `dequantize` and `codes`."""
        shape = (layer.out_features, layer.in_features)
        weight = torch.empty(shape, dtype=dtype, device="meta").as_subclass(DecodedWeight)
        weight.layer = layer
        return weight

    @cached_property
    def value(self) -> Tensor:
        """The decoded weight; kept, since others may hold a pointer to it."""
        return self.layer.dequantize().to(self.dtype)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None):
        if func in _FREE:
            return super().__torch_function__(func, types, args, kwargs or {})
        if func == Tensor.device.__get__:
            return args[0].layer.codes.device
        if func == Tensor.data.__get__:
            return args[0]
        if _writes(func) and isinstance(args[0], DecodedWeight):
            raise DitQuantError(
                "the weight of a quantized layer cannot be written to, so a LoRA cannot be fused into it. "
                "Leave the LoRA loaded beside it (load_lora_weights, set_adapters), or fuse it before quantizing."
            )
        args, kwargs = tree_map_only(DecodedWeight, lambda weight: weight.value, (args, kwargs or {}))
        return func(*args, **kwargs)


def _writes(func: Callable) -> bool:
    """Say whether a function changes its first argument."""
    name = getattr(func, "__name__", "")
    if name in _HARMLESS:
        return False
    if name.startswith("__"):
        in_place = name.startswith("__i") and hasattr(operator, name)
        return in_place or name == "__setitem__" or func == Tensor.data.__set__
    return name.endswith("_")
