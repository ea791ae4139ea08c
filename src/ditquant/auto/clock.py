"""Milliseconds of a layer in some way, on this machine and on as many rows as a call of its model brings.

Layers of equal shape, scheme and rows are measured once. Those of one layer take turns with the layer in floating
point, and what counts is their least time against its own: what the machine does besides only ever adds, and on a busy
one it adds more than a small layer takes to most of the calls, so that a median would be one of the others' work.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ditquant import distributed
from ditquant.nn import QuantLinear

TURNS = 9


class Clock:
    """A table of milliseconds by `key`; what it lacks is measured and added. `seconds` times a call."""

    def __init__(
        self,
        table: Mapping[str, float] | None = None,
        seconds: Callable[[Callable[[], object], torch.device], float] | None = None,
    ):
        self.table = dict(table or {})
        self._seconds = timed if seconds is None else seconds

    @torch.no_grad()
    def ms(self, linear: nn.Linear, made: Sequence[QuantLinear], rows: int) -> list[float]:
        """Return the milliseconds of a layer in floating point, then of its quantized ways.

        Every rank gets the times of the first, so that all choose the same.
        """
        modules = {key(module, rows, linear.weight.dtype): module for module in (linear, *made)}
        if lacking := [name for name in modules if name not in self.table]:
            x = torch.randn(1, rows, linear.in_features, generator=torch.Generator().manual_seed(0)).to(linear.weight)
            float_key = key(linear, rows, linear.weight.dtype)
            turns = self._turns({name: modules[name] for name in (float_key, *lacking)}, x)
            base, least = self.table.get(float_key), min(turns[float_key])
            scale = 1e3 if base is None else base / least
            found = {name: scale * min(turns[name]) for name in lacking}
            self.table |= distributed.gather(found)[0]
        return [self.table[key(module, rows, linear.weight.dtype)] for module in (linear, *made)]

    def _turns(self, modules: Mapping[str, nn.Module], x: Tensor) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in modules}
        names = list(modules)
        for turn in range(TURNS + 1):
            first = turn % len(names)  # in an order that does not fall into step with what else runs
            for name in names[first:] + names[:first]:
                taken = self._seconds(partial(modules[name], x), x.device)
                if turn:  # the first one makes what is kept
                    seconds[name].append(taken)
        return seconds


def key(layer: nn.Linear, rows: int, dtype: torch.dtype) -> str:
    """Return what a layer's time depends on: shape, rows, dtype, and how weights and inputs are kept."""
    words = f"{layer.in_features} -> {layer.out_features}, {rows} rows, {str(dtype).removeprefix('torch.')}"
    if not isinstance(layer, QuantLinear):
        return words
    weight, activation = layer.plan.weight, layer.plan.activation
    scheme = f"w{weight.bits} {weight.format} g{weight.group_size or 0}{'' if weight.symmetric else ' asymmetric'}"
    if activation is not None:
        groups = "" if activation.group_size is None else str(activation.group_size)
        scheme += f" a{activation.bits} {activation.granularity}{groups}{'' if activation.symmetric else ' asymmetric'}"
    chain = "".join(f" {' '.join(map(str, (t.kind, *t.options.values())))}" for t in layer.plan.transforms)
    return f"{words}, {scheme}{chain}{f' rank {layer.plan.rank}' if layer.plan.rank else ''}"


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, with all that it leaves to a GPU."""
    _wait(device)
    begin = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
