"""What the linear layers of a running model receive, and which of them leave the range of numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ditquant.stats import LayerStats

ROWS = 256  # a layer's input rows that are kept
HALF_MAX = torch.finfo(torch.float16).max


@dataclass
class Watched:
    """Statistics of the calls with finite values, the largest magnitude of input and output, and what went wrong."""

    stats: dict[str, LayerStats] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def trouble(self, name: str) -> str:
        """Say what is wrong with a layer; empty if nothing is."""
        if name in self.broken:
            return self.broken[name]
        if name not in self.stats:
            return "never called by these prompts"
        if self.largest[name] > HALF_MAX:
            return f"overflows in float16: values up to {self.largest[name]:.3g}"
        return ""

    def see(self, name: str, x: Tensor, y: Tensor) -> None:
        """Take note of one call."""
        values = [float(t.detach().float().abs().amax()) for t in (x, y) if t.numel()]
        finite = [bool(torch.isfinite(torch.tensor(value))) for value in values]
        if not all(finite):
            where = "finite input, NaN or infinite output" if finite[0] else "its input is NaN or infinite"
            self.broken.setdefault(name, where)
            return
        self.largest[name] = max([self.largest.get(name, 0.0), *values])
        self.stats.setdefault(name, LayerStats(x.shape[-1], ROWS)).update(x)


@contextmanager
def watching(layers: Mapping[str, nn.Linear]) -> Iterator[Watched]:
    """Watch the named layers while the model runs."""
    found = Watched()
    for name, layer in layers.items():
        if not bool(torch.isfinite(layer.weight).all()):
            found.broken[name] = "its weight holds NaN or infinite values"

    def hook(name: str):
        return lambda _module, args, kwargs, output: found.see(name, args[0] if args else kwargs["input"], output)

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
