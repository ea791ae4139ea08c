"""What the linear layers of a running model receive, and which of them leave the range of numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ditquant.evaluation.origin import Trace, Trouble, finite, tracing, why
from ditquant.stats import LayerStats

ROWS = 256  # a layer's input rows that are kept
HALF_MAX = torch.finfo(torch.float16).max
BEHIND = "its input is NaN or infinite"


@dataclass
class Watched:
    """Statistics of the calls with finite values, the largest magnitude of input and output, and what went wrong.

    What went wrong is that of the first call of the model in which a value was not finite.
    """

    stats: dict[str, LayerStats] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    trace: Trace = field(default_factory=Trace)

    def trouble(self, name: str) -> str:
        """Say what is wrong with a layer; empty if nothing is."""
        if name in self.broken:
            return self.broken[name]
        if name not in self.stats:
            return "never called by these prompts"
        if self.largest[name] > HALF_MAX:
            return f"overflows in float16: values up to {self.largest[name]:.3g}"
        return ""

    def outside(self) -> list[Trouble]:
        """Return what is wrong with anything but the layers, where NaN and infinite values begin first."""
        origin = self.trace.origin
        first = [] if origin is None or self.broken.get(origin.name, BEHIND) != BEHIND else [origin]
        told = {one.name for one in first}
        told |= {f"{name}.{value}" for name in (*self.broken, *told) for value in ("weight", "bias")}
        return first + [Trouble(name, what) for name, what in self.trace.values.items() if name not in told]

    def see(self, name: str, layer: nn.Linear, x: Tensor, y: Tensor) -> None:
        """Take note of one call."""
        values = [float(t.detach().float().abs().amax()) for t in (x, y) if t.numel()]
        are_finite = [bool(torch.isfinite(torch.tensor(value))) for value in values]
        if not all(are_finite):
            if name not in self.broken and not self.trace.over:
                self.broken[name] = why(layer, (x,), {}) if are_finite[0] else BEHIND
            return
        self.largest[name] = max([self.largest.get(name, 0.0), *values])
        self.stats.setdefault(name, LayerStats(x.shape[-1], ROWS)).update(x)


@contextmanager
def watching(layers: Mapping[str, nn.Linear], models: Mapping[str, nn.Module] | None = None) -> Iterator[Watched]:
    """Watch the named layers while the models that they are parts of run; see `tracing` for the names of models."""
    with tracing(models or {}) as trace:
        found = Watched(trace=trace)
        for name, layer in layers.items():
            if not finite((layer.weight, layer.bias)):
                found.broken[name] = why(layer, (), {})

        def hook(name: str):
            return lambda layer, args, kwargs, y: found.see(name, layer, args[0] if args else kwargs["input"], y)

        handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
