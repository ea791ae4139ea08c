"""What a quantized model weighs: measured on its layers, or foreseen from a recipe."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ditquant.formats import layout
from ditquant.models import Layer
from ditquant.nn import QuantLinear
from ditquant.rule import Rule


@dataclass(frozen=True)
class Size:
    """Weights of the quantized layers and the bytes they take on disk: codes, parameters, transforms and bias."""

    weights: int
    layer_bytes: int
    other_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight, all-in."""
        return 8 * self.layer_bytes / max(self.weights, 1)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole model."""
        return self.layer_bytes + self.other_bytes


def measure(model: nn.Module) -> Size:
    """Weigh a quantized model."""
    layers = {m for m in model.modules() if isinstance(m, QuantLinear)}
    inside = {t for m in layers for t in (*m.parameters(), *_stored_buffers(m))}
    everything = {*model.parameters(), *_stored_buffers(model)}
    return Size(sum(m.in_features * m.out_features for m in layers), _bytes(inside), _bytes(everything - inside))


def foresee(model: nn.Module, matched: Iterable[tuple[Layer, Rule]], float_bytes: int = 2) -> Size:
    """Foresee the size of a model (meta modules do), its floating-point parts at `float_bytes` a number.

    Transforms count as smoothing with a rotation: 2 bytes and 1 bit a channel.
    """
    weights = quantized = 0
    for layer, rule in matched:
        stored = layout(rule.weight, layer.out_features, layer.in_features)
        quantized += sum(math.prod(shape) * dtype.itemsize for shape, dtype in stored.values())
        quantized += (layer.in_features * 17 + 7) // 8 if rule.transforms else 0
        quantized += 2 * rule.rank * (layer.in_features + layer.out_features)
        bias = model.get_submodule(layer.name).bias
        quantized += 0 if bias is None else bias.numel() * float_bytes
        weights += layer.parameters
    total = sum(p.numel() for p in model.parameters())
    biases = sum(b.numel() for layer, _ in matched if (b := model.get_submodule(layer.name).bias) is not None)
    return Size(weights, quantized, (total - weights - biases) * float_bytes)


def _stored_buffers(module: nn.Module) -> list:
    return [
        b
        for m in module.modules()
        for n, b in m._buffers.items()
        if b is not None and n not in m._non_persistent_buffers_set
    ]


def _bytes(tensors: Iterable) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
