"""Where NaN and infinite values begin: the first module that returns them and received none, and the reason."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

HOLDS = "holds NaN or infinite values"


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a layer, another module, or a parameter or buffer."""

    name: str
    what: str


@dataclass
class Trace:
    """Follows the modules of running models to the end of the first call in which a value is not finite.

    The calls after it start from what that one returned, so that they say nothing of where it began. `origin` is the
    first module, in the order in which they return, that turned finite arguments into other values.
    """

    origin: Trouble | None = None
    over: bool = False
    values: dict[str, str] = field(default_factory=dict)  # parameters and buffers that are not finite
    _reached: str = ""  # the first module that received such values

    def enter(self, name: str, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """See the arguments of a whole model."""
        ill = [str(key) for key, value in (*enumerate(args), *kwargs.items()) if not finite(value)]
        if ill and self.origin is None:
            what = f"receives NaN or infinite values ({', '.join(ill)}): look at what the pipeline runs before it"
            self.origin = Trouble(name or type(model).__name__, what)

    def see(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """See what a module returned."""
        if self.over or self.origin is not None or finite(output):
            return
        if not finite((args, kwargs)):
            self._reached = self._reached or name
            return
        ill = _ill_values(module)
        if ill and not isinstance(module, nn.Linear):
            self.origin = Trouble(f"{name}.{ill[0]}".strip("."), HOLDS)
            return
        what = why(module, args, kwargs)
        if self._reached and not isinstance(module, nn.Linear):
            what += f"; within it, {self._reached} is the first to receive them"
        self.origin = Trouble(name or type(module).__name__, what)

    def leave(self) -> None:
        """End with the call of a whole model, if it was one with such values."""
        if self.origin is None and self._reached:
            self.origin = Trouble(self._reached, "receives NaN or infinite values, which no module returned")
        self.over = self.over or self.origin is not None


@contextmanager
def tracing(models: Mapping[str, nn.Module]) -> Iterator[Trace]:
    """Trace whole models while they run; a model named "" gives its modules no prefix."""
    trace, handles = Trace(), []
    for root, model in models.items():
        trace.values |= {_joined(root, name): HOLDS for name, value in _values(model) if not finite(value)}
        handles.append(model.register_forward_pre_hook(partial(trace.enter, root), with_kwargs=True))
        for name, module in model.named_modules():
            hook = partial(trace.see, _joined(root, name))
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        handles.append(model.register_forward_hook(lambda *_: trace.leave()))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def finite(values: Any) -> bool:
    """Say whether all floating-point tensors are finite; a mask of zeros and minus infinity is."""
    return all(_finite(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point())


def why(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Say why a module returns NaN or infinite values of arguments that are finite."""
    ill = _ill_values(module)
    if ill:
        return f"its {' and '.join(ill)} {HOLDS if len(ill) == 1 else HOLDS.replace('holds', 'hold')}"
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    dtypes = {leaf.dtype for leaf in (*given, *module.parameters())} or {torch.float32}
    dtype = min(dtypes, key=lambda one: torch.finfo(one).max)
    name, limit = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
    if isinstance(module, nn.Linear):
        largest = _largest(module, given[0])
        return f"its output overflows {name}: it reaches {largest:.3g} from a finite input, {name} holds {limit:.5g}"
    largest = max((float(leaf.abs().amax()) for leaf in given if leaf.numel()), default=0.0)
    return f"finite input (up to {largest:.3g}), NaN or infinite output; {name} holds {limit:.5g}"


def _largest(linear: nn.Linear, x: Tensor) -> float:
    """Return the largest magnitude of the output, in the next wider numbers; those of float64 are on the CPU."""
    wide, device = (torch.float64, "cpu") if x.dtype == torch.float32 else (torch.float32, x.device)
    bias = None if linear.bias is None else linear.bias.to(device, wide)
    y = nn.functional.linear(x.to(device, wide), linear.weight.to(device, wide), bias)
    return float(y.abs().amax())


def _ill_values(module: nn.Module) -> list[str]:
    """Name the values of a module's own that are not finite; if there are none, those of its parts."""
    own = [name for name, value in _values(module, recurse=False) if not finite(value)]
    return own or [name for name, value in _values(module) if not finite(value)]


def _values(module: nn.Module, recurse: bool = True) -> Iterable[tuple[str, Tensor]]:
    return (*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse))


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all()) or bool((torch.isneginf(value) | (value == 0)).all())


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)
