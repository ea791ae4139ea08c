"""Quantized layers that decode their weights once, where they are run many times in a row."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property

from torch import Tensor

from ditquant.formats import PackedWeight
from ditquant.nn import QuantLinear


class _DecodedOnce(PackedWeight):
    """Keeps what it decodes: layers are run on many calls in a row."""

    @cached_property
    def _values(self) -> Tensor:
        return super().dequantize()

    @cached_property
    def _int8(self) -> tuple[Tensor, Tensor] | None:
        return super().to_int8()

    def dequantize(self) -> Tensor:
        return self._values

    def to_int8(self) -> tuple[Tensor, Tensor] | None:
        return self._int8


@contextmanager
def decoded_once(layers: Collection[QuantLinear]) -> Iterator[None]:
    """Let quantized layers decode their weights once."""
    for layer in layers:
        packed = layer.packed()
        once = _DecodedOnce(packed.codes, packed.params, packed.shape, packed.spec)
        layer.packed = lambda once=once: once  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.packed
