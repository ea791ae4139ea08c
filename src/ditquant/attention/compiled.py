"""Let the attention layers of a diffusers model attend by `kernels.attention`, whatever their processors do beside."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ditquant import kernels


class _ByKernel(TorchFunctionMode):
    """Inside, torch's attention is ours."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None):
        if func is F.scaled_dot_product_attention:
            func = kernels.attention
        elif func is Tensor.div and len(args) == 2 and not kwargs and _is_one(args[1]):
            return args[0]  # diffusers divides what comes out by 1.0
        elif func is Tensor.unflatten:  # torch.compile cannot trace it here; the function does the same
            func = torch.unflatten
        return func(*args, **(kwargs or {}))


def _is_one(divisor: Any) -> bool:
    return type(divisor) is float and divisor == 1


@functools.cache
def _within(cls: type) -> type:
    """Return a subclass of a processor's class that runs it inside; its name and its parameters are the same."""

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _ByKernel():
            return cls.__call__(self, *args, **kwargs)

    body = {"__call__": call, "__reduce__": lambda self: (_rebuild, (cls, self.__dict__)), "diffusers_class": cls}
    return type(cls.__name__, (cls,), body)


def _rebuild(cls: type, state: dict[str, Any]) -> Any:
    return _as(_within(cls), state)


def _as(cls: type, state: dict[str, Any]) -> Any:
    new = object.__new__(cls)
    new.__dict__.update(state)
    return new


def use_compiled_attention(model: nn.Module, use: bool = True) -> None:
    """Change the processors of diffusers' own attention layers, or give them back; others are left alone."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        cls = type(processor)
        if processor is None or isinstance(processor, nn.Module) or not cls.__module__.startswith("diffusers."):
            ours = getattr(cls, "diffusers_class", None)
            if ours is not None and not use:
                module.processor = _as(ours, processor.__dict__)
        elif use:
            module.processor = _as(_within(cls), processor.__dict__)
