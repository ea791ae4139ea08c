"""A format says what codes mean: the parameters it stores and how codes are decoded, however they were chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from ditquant.formats.packing import pack, packed_width, unpack
from ditquant.registry import Registry
from ditquant.specs import WeightSpec

Params = Mapping[str, Tensor]


class Format(Protocol):
    """A family of code books; one instance in FORMATS serves all specs."""

    def param_shapes(
        self, spec: WeightSpec, rows: int, in_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of every parameter; raises DitQuantError if the spec does not fit."""

    def check(self, params: Params, spec: WeightSpec) -> str | None:
        """Say what is wrong with the values of loaded parameters; None if nothing is."""

    def decode(self, codes: UInt8[Tensor, "N K"], params: Params, spec: WeightSpec) -> Float[Tensor, "N K"]:
        """Return the values of unpacked codes in float32."""

    def decode_int8(
        self, codes: UInt8[Tensor, "N K"], params: Params, spec: WeightSpec
    ) -> tuple[Int8[Tensor, "N K"], Float[Tensor, " N"]] | None:
        """Return INT8 values and one float32 scale a row for an integer product; None if the spec has no such form."""

    def int8_table(self, params: Params, spec: WeightSpec) -> tuple[Int8[Tensor, "R V"], Float[Tensor, " N"]] | None:
        """Return what `decode_int8` looks up: 2^bits INT8 values for every row, or once for all, and the scales."""


FORMATS: Registry[Format] = Registry("weight format")


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight [N, K]: packed codes, the parameters of its format, and the spec that gives them meaning."""

    codes: UInt8[Tensor, "N P"]
    params: Params
    shape: tuple[int, int]
    spec: WeightSpec

    @staticmethod
    def from_codes(codes: UInt8[Tensor, "N K"], params: Params, spec: WeightSpec) -> "PackedWeight":
        """Pack unpacked codes."""
        return PackedWeight(pack(codes, spec.bits), dict(params), (codes.shape[0], codes.shape[1]), spec)

    def unpack(self) -> UInt8[Tensor, "N K"]:
        """Return one code a byte."""
        return unpack(self.codes, self.spec.bits, self.shape[1])

    def dequantize(self) -> Float[Tensor, "N K"]:
        """Decode to float32."""
        return FORMATS[self.spec.format].decode(self.unpack(), self.params, self.spec)

    def to_int8(self) -> tuple[Int8[Tensor, "N K"], Float[Tensor, " N"]] | None:
        """Decode to INT8 and a scale a row, if the format has that form."""
        return FORMATS[self.spec.format].decode_int8(self.unpack(), self.params, self.spec)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and parameters."""
        return sum(t.numel() * t.element_size() for t in (self.codes, *self.params.values()))

    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of every stored tensor."""
        return layout(self.spec, *self.shape)


def layout(spec: WeightSpec, rows: int, in_features: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of every tensor that a weight of this spec stores."""
    codes = {"codes": ((rows, packed_width(in_features, spec.bits)), torch.uint8)}
    return codes | FORMATS[spec.format].param_shapes(spec, rows, in_features)
