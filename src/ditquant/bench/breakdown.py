"""Where the time of a quantized model's call goes: its layers' parts measured alone, its attention in the call.

A fused kernel is taken apart by calling it with less to do: without the rotation, with one token (what is left is the
decoding of the weight), with one group of channels (what is left beside decoding are scales, bias and storing).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ditquant.bench.attention_time import WRONG, attention_ms
from ditquant.bench.parts import Part, parts_of
from ditquant.bench.subject import Subject
from ditquant.bench.timing import interleave, median_ms
from ditquant.nn import QuantLinear

PARTS = (
    *("transform", "activation quantization", "decode", "product", "epilogue", "unquantized input"),
    *("attention", "rest"),
)


@dataclass
class _Kind:
    """Layers of one plan, one shape and one number of tokens: the first, what it was called with, how many calls."""

    layer: QuantLinear
    x: Tensor
    calls: int = 0


def breakdown(model: nn.Module, subject: Subject, total_ms: float, rounds: int) -> dict[str, Any]:
    """Return milliseconds by part of a call that takes `total_ms`; "wrong" where the result is not the reference's."""
    found: dict[str, float | str] = dict.fromkeys(PARTS[:-1], 0.0)
    for kind in _kinds(model, subject):
        parts = parts_of(kind.layer, kind.x)
        seconds = interleave({name: part.run for name, part in parts.items()}, rounds)
        ms = {name: median_ms(times) for name, times in seconds.items()}
        for name, part in parts.items():
            _add(found, name, part, kind.calls * max(ms[name] - sum(ms[less] for less in part.without), 0.0))
    found["attention"] = attention_ms(lambda: subject.call(model))
    spent = sum(value for value in found.values() if not isinstance(value, str))
    if WRONG not in found.values():
        found["rest"] = max(total_ms - spent, 0.0)
    return {name: value if isinstance(value, str) else round(value, 2) for name, value in found.items()}


def _add(found: dict[str, float | str], name: str, part: Part, ms: float) -> None:
    before = found[name]
    found[name] = WRONG if isinstance(before, str) or not part.sound() else before + ms


def _kinds(model: nn.Module, subject: Subject) -> list[_Kind]:
    """Run one call and gather what the quantized layers see."""
    kinds: dict[tuple, _Kind] = {}

    def note(layer: QuantLinear, args: tuple) -> None:
        x = args[0]
        plan = str(layer.plan.to_dict())
        key = (layer.in_features, layer.out_features, x.shape, x.dtype, plan, layer.keeps_decoded)
        kinds.setdefault(key, _Kind(layer, x.detach().clone())).calls += 1

    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        subject.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return list(kinds.values())
